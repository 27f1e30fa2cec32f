"""Replies from a model: one stream, or many prompts in one batch."""
