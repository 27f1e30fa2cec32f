"""What other tools read: PEFT, GGUF, Ollama, LM Studio."""
