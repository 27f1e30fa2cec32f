"""The studio: a terminal app over `macft.api` and the run folders.

The rule: this process never loads MLX. What is heavy is another process's, and everything here is drawn from what that
process writes.
"""
