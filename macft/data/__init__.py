"""Rows on disk to tokens and loss masks, all of it before a model loads."""
