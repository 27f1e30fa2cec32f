"""Make the golden numbers of supervised fine-tuning with torch, transformers and peft.

Made with Python 3.11, torch 2.13.0 (CPU, one thread), transformers 5.23.0, peft 0.21.2, tokenizers 0.23.3 and
numpy 2.4.6, in fp32 with eager attention. `README.md` beside this file says how to run it again.

The rule: whatever is written is in mlx-lm's conventions (names of parameters, axes of A and B), so that a test compares
arrays and converts nothing. torch's own axes end in this file.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from tokenizers import decoders, models, pre_tokenizers

HERE = Path(__file__).parent
SEED = 20261122
VOCABULARY = 256
LENGTHS = (20, 14, 9, 5)
"""Real tokens a row; the batch is padded on the right to the first."""
SUPERVISED = ((range(6, 10), range(15, 20)), (range(8, 14),), (range(2, 9),), (range(4, 5),))
"""Positions a row that are trained on: two turns, an answer, nearly everything, one token."""

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 4, 8
STEPS = 10

SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 245,
    "pad_token_id": None,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 3_000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 70_000.0},
}


NEW_KEYS = ("rope_parameters", "dtype", "_sliding_window_pattern")


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    """RoPE parameters as transformers 5 spells them. No theta used here is the default of any family."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling}


CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZE | {"hidden_size": 64}, tie_word_embeddings=True, **rope(20_000.0)),
    "llama3_rope": lambda: transformers.LlamaConfig(
        **SIZE, head_dim=16, tie_word_embeddings=True, **rope(50_000.0, **LLAMA3_SCALING)
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SIZE, tie_word_embeddings=False, **rope(30_000.0)),
    "qwen3": lambda: transformers.Qwen3Config(**SIZE, head_dim=8, tie_word_embeddings=True, **rope(40_000.0)),
    "smollm3": lambda: transformers.SmolLM3Config(
        **SIZE, no_rope_layer_interval=2, tie_word_embeddings=True, **rope(60_000.0)
    ),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(
        **SIZE | {"hidden_size": 16},  # a square: mlx-lm rounds sqrt(width) to bf16, torch in fp32 does not
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=GEMMA3_ROPE,
    ),
}


def config_v4(config: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a config of transformers 5 the way transformers 4 wrote it."""
    old = {key: value for key, value in config.items() if key not in NEW_KEYS}
    old |= {"torch_dtype": config["dtype"], "transformers_version": "4.50.0"}
    parameters = config["rope_parameters"]
    if "full_attention" in parameters:
        return {key: value for key, value in old.items() if key != "layer_types"} | {
            "rope_theta": parameters["full_attention"]["rope_theta"],
            "rope_local_base_freq": parameters["sliding_attention"]["rope_theta"],
            "rope_scaling": None,
            "sliding_window_pattern": 2,
        }
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return old | {
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
    }


def make_model(name: str) -> transformers.PreTrainedModel:
    """Build a random model whose logits are neither flat nor saturated."""
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[name](), attn_implementation="eager", dtype=torch.float32
    )
    for parameter_name, parameter in model.named_parameters():
        if "embed" in parameter_name or "lm_head" in parameter_name:
            parameter.data.normal_(0.0, 2.5 / math.sqrt(parameter.shape[1]))
        elif parameter.ndim == 2:
            parameter.data.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]))
        elif "bias" in parameter_name:
            parameter.data.normal_(0.0, 0.3)
        else:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [B, T], 0 where padded, and the loss mask [B, T]: 1 = this token is trained on."""
    random = np.random.default_rng(SEED)
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (length, spans) in enumerate(zip(LENGTHS, SUPERVISED, strict=True)):
        ids[row, :length] = torch.from_numpy(random.integers(1, 243, length))
        for span in spans:
            mask[row, list(span)] = 1
    return ids, mask


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V]; meaningless where the row is padded, which no real position ever sees."""
    return model(input_ids=ids, use_cache=False).logits


def sft_loss(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over all supervised tokens of the batch, nats a token: logits at t-1 predict token t."""
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weight = mask[:, 1:].flatten()
    return (nll * weight).sum() / weight.sum()


def with_adapter(name: str, **options: Any) -> torch.nn.Module:
    """Attach a peft adapter to a fresh copy of the model; A and B are random and the same for every kind."""
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS), bias="none", **options
    )
    model = get_peft_model(make_model(name), config)
    torch.manual_seed(SEED + 1)
    magnitudes = []
    for key, parameter in model.named_parameters():
        if "lora_A" in key:
            parameter.data.normal_(0.0, 1.0 / math.sqrt(parameter.shape[1]))
        elif "lora_B" in key:
            parameter.data.normal_(0.0, 0.1)
        elif "magnitude" in key:
            magnitudes.append(parameter)
    for parameter in magnitudes:
        parameter.data.mul_(1.0 + 0.1 * torch.randn_like(parameter))
    return model.eval()


def adapter_tensors(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Name every trained tensor as mlx-lm does: `model.layers.0.self_attn.q_proj.lora_a`."""
    tensors: dict[str, torch.nn.Parameter] = {}
    for key, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            tensors[f"{key}.lora_a"] = module.lora_A["default"].weight
            tensors[f"{key}.lora_b"] = module.lora_B["default"].weight
            if module.lora_magnitude_vector:
                tensors[f"{key}.m"] = module.lora_magnitude_vector["default"].weight
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if trained != len(tensors):
        raise RuntimeError(f"{trained} trained tensors, {len(tensors)} named")
    return tensors


def to_mlx(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, np.ndarray]:
    """Transpose A to (in, r) and B to (r, out); magnitudes stay (out,)."""
    return {f"{prefix}/{key}": tensor.detach().numpy().T.copy() for key, tensor in tensors.items()}


def adapter_case(name: str, kind: str, **options: Any) -> dict[str, np.ndarray]:
    """Weights that plain LoRA does not have already, loss and gradients; ten steps of AdamW for plain LoRA."""
    ids, mask = make_batch()
    model = with_adapter(name, **options)
    tensors = adapter_tensors(model)
    new = tensors if kind == "lora" else {key: tensor for key, tensor in tensors.items() if key.endswith(".m")}
    arrays = to_mlx(new, f"{kind}/weights")
    loss = sft_loss(logits_of(model, ids), ids, mask)
    loss.backward()
    arrays[f"{kind}/loss"] = loss.detach().numpy()
    arrays |= to_mlx({key: tensor.grad for key, tensor in tensors.items()}, f"{kind}/gradients")
    if kind == "lora":
        arrays["adamw/losses"] = adamw(model, tensors, ids, mask)
        arrays |= to_mlx(tensors, "adamw/weights") if name == "llama" else {}
    return arrays


def adamw(
    model: torch.nn.Module, tensors: dict[str, torch.nn.Parameter], ids: torch.Tensor, mask: torch.Tensor
) -> np.ndarray:
    """Take ten steps on the one batch; returns the loss before each."""
    optimizer = torch.optim.AdamW(tensors.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sft_loss(logits_of(model, ids), ids, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses, dtype=np.float32)


def make_case(name: str) -> None:
    """Write one folder: weights, both configs, and every number about them."""
    folder = HERE / name
    model = make_model(name)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config_v4.json").write_text(json.dumps(config_v4(config), indent=2, sort_keys=True) + "\n")

    ids, mask = make_batch()
    with torch.no_grad():
        logits = logits_of(model, ids)
    real = torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]
    arrays = {
        "ids": ids.numpy().astype(np.int32),
        "lengths": np.array(LENGTHS, dtype=np.int32),
        "loss_mask": mask.numpy().astype(np.int32),
        "logits": torch.where(real[..., None], logits, 0.0).numpy(),
        "loss": sft_loss(logits, ids, mask).numpy(),
    }
    if name != "llama3_rope":
        arrays |= adapter_case(name, "lora")
    if name == "llama":
        arrays |= adapter_case(name, "rslora", use_rslora=True)
        arrays |= adapter_case(name, "dora", use_dora=True)
    np.savez_compressed(folder / "numbers.npz", **arrays)
    print(f"{name:12} loss {arrays['loss']:.4f}  logits sd {logits.std():.2f}")


def make_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer of exactly 256 ids: special tokens sit where 13 bytes never occur in UTF-8."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = dict(zip(printable, map(chr, printable), strict=True))
    hidden = (byte for byte in range(256) if byte not in shown)
    shown |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", *(f"<|unused{n}|>" for n in range(9))]

    vocabulary = {shown[byte]: index for index, byte in enumerate(b for b in range(256) if b not in never)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError("the tokenizer does not have 256 ids")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)


def main() -> None:
    """Write every case."""
    torch.set_num_threads(1)
    for name in CONFIGS:
        make_case(name)
    make_tokenizer(HERE / "llama")


if __name__ == "__main__":
    main()
