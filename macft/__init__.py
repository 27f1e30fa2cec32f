"""macft: a private fine-tuning studio for the MacBook. This module imports nothing heavy."""

__version__ = "0.1.0"
