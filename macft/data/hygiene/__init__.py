"""What is wrong with rows as text, before any tokenizer: doubles, leaks, broken and private text."""
