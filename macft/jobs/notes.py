"""What the tools that receive a model will and won't do with it."""

NOTES = {
    "mlx": [
        "mlx_lm.generate --model {path} loads it, and so does LM Studio (macft export --to lmstudio puts it there)",
        "Ollama and llama.cpp do not read MLX folders: --to ollama, --to gguf",
    ],
    "peft": [
        "PeftModel.from_pretrained(base, {path}) loads it; the base must be the model that the card names",
        "LM Studio does not load it; Ollama and llama.cpp take --to gguf-adapter instead",
    ],
    "gguf-adapter": [
        "llama.cpp: llama-cli -m BASE.gguf --lora {path}/{name}-lora.gguf; the base must be the same model as GGUF",
        "Ollama: --to ollama --ollama-base NAME writes a Modelfile with ADAPTER; LM Studio loads no adapters",
    ],
    "gguf": [
        "llama.cpp, Ollama and LM Studio load it, with its tokenizer and chat template inside",
    ],
    "ollama": [
        "ollama create {name} -f {path}/Modelfile, then ollama run {name}",
        "Ollama asks with the template that was trained with; the Modelfile's template passes no tools on",
    ],
    "lmstudio": [
        "LM Studio lists it as {publisher}/{name}; it runs MLX models on Apple silicon only",
        "LM Studio loads no adapters, so this is a whole model",
    ],
}
