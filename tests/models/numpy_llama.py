"""A llama written out in NumPy on a GGUF file's own layout, to hold the import and MLX against."""

from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


def read_gguf(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file in fp32, as stored: rows of q and k still in llama.cpp's order."""
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def forward(
    tensors: dict[str, np.ndarray],
    ids: list[int],
    *,
    heads: int,
    kv_heads: int,
    theta: float,
    factors: np.ndarray | float = 1.0,
    eps: float = 1e-5,
) -> np.ndarray:
    """A llama in float64 on the file's own layout: RoPE turns neighbouring pairs, as llama.cpp does. Logits [T, V].

    `factors` divide the frequencies [head_dim / 2], as llama 3's `rope_freqs` do.
    """
    t = len(ids)
    x = tensors["token_embd.weight"][ids].astype(np.float64)
    dim = tensors["blk.0.attn_q.weight"].shape[0] // heads
    angles = np.arange(t)[:, None] * theta ** (-np.arange(0, dim, 2) / dim) / factors
    turn = np.exp(1j * angles)[:, None, :]

    def norm(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return values / np.sqrt((values**2).mean(-1, keepdims=True) + eps) * weight

    def rope(values: np.ndarray, count: int) -> np.ndarray:
        pairs = values.reshape(t, count, dim // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(t, count, dim)

    for layer in range(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))):
        w = {name.split(".")[2]: tensors[name] for name in tensors if name.startswith(f"blk.{layer}.")}
        h = norm(x, w["attn_norm"])
        q, k = rope(h @ w["attn_q"].T, heads), rope(h @ w["attn_k"].T, kv_heads)
        v = (h @ w["attn_v"].T).reshape(t, kv_heads, dim)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim) + np.triu(np.full((t, t), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", weights, v).reshape(t, -1) @ w["attn_output"].T
        h = norm(x, w["ffn_norm"])
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    return norm(x, tensors["output_norm.weight"]) @ tensors["token_embd.weight"].T
