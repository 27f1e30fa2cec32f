"""The command line: arguments in, one `macft.api` call, events or a table out."""
