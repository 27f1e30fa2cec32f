"""Bytes that training needs: arithmetic only.

The rule: shapes in, bytes out. Nothing here knows a model's files, a machine or MLX. The coefficients of the CPU
backend were counted in what `losses`, `models.stream` and `models.dequantized` keep, and measured in fresh processes
(`tests/benchmarks/plan_grid.py`); those of Metal are traces of the same graphs (ENGINE §3), not measured there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from macft.facts import Loaded, Shape

FLOAT32_BYTES = 4
CHUNK_ROWS = 256
"""Positions whose logits exist at once, as in `losses.logprobs`; a test holds the two equal."""
LIVE_CHUNKS = 3
"""Chunks of the head that MLX has in hand at once; it runs ahead of what is done with."""
TRAINED_HEAD_COPIES = 4.5
"""Copies of all logits, float32, when the head is trained and its gradient is left to autodiff."""
UNKNOWN_HEAD_COPIES = 3.0
"""Copies of the supervised logits when the model makes its own, besides one of all positions."""
LEVELS = ("none", "pointwise", "mlp", "layer")
"""What the backward pass can compute again, the least first, as `models.recompute` says."""
GRADIENT_COPIES = 2
"""Summed and clipped gradients live beside each other until the update is made."""
MOMENTS = {"adamw": 2, "lion": 1, "muon": 1, "sgd": 1, "adafactor": 0}
"""State of each optimizer, in copies of what is trained; Adafactor's is a row and a column of each matrix."""
SCRATCH = {"lion": 1}
"""Further copies while an optimizer is at work."""
AHEAD_MATRICES = 16
AHEAD_EMBEDDINGS = {"adamw": 3.4, "lion": 2.2, "muon": 9.5, "sgd": 1.0, "adafactor": 2.1}
"""An update's temporary copies: of so many matrices of a layer, and of the embedding."""
SMALL_BYTES = 2**18
"""Indices, positions and masks of a pass: felt in toy models only."""
DORA_MATRICES = 14
"""Matrices that DoRA makes on the way to the norms of adapted weights."""
LOADED_COPIES = {"float": 2, "quantized": 6}
"""Bytes a value of the largest matrix, beside the model, while it is cast or quantized."""
NORMED_HEADS = {"qwen3", "gemma3_text", "olmo2"}
"""Families that normalize queries and keys, which keeps them twice."""
DOUBLE_NORMS = {"gemma3_text", "gemma2"}
"""Families with two more norms a layer."""
STREAMED = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text", "iquestcoder", "xverse"}
"""Families whose rows lie in one flat stream; all others take padded rows."""
SPLIT_HEADS = STREAMED | {"phi3", "gemma", "gemma2", "cohere", "cohere2", "granite", "olmo2", "starcoder2", "stablelm"}
"""Families whose head macft takes apart; of all others the worst is expected: logits of every position."""


@dataclass(frozen=True, slots=True)
class Work:
    """Values a token that come and go inside one layer, as multiples of its widths.

    Attributes:
        inner: Of the MLP's width.
        width: Of the hidden states.
        queries: Of all heads together.
        kv: Of the keys.
        scores: Of the attention weights, in the MLP's backward pass, where they are kept.
        attention: The same, in attention's own.
    """

    inner: float
    width: float
    queries: float
    kv: float = 0.0
    scores: float = 0.0
    attention: float = 0.0


@dataclass(frozen=True, slots=True)
class Backend:
    """What one way of running a model keeps.

    Attributes:
        value_bytes: Of an activation.
        inner: Values kept a token and layer, as multiples of the MLP's width.
        kv: The same of the keys' width.
        longest_scores: Rows up to this length keep their attention weights.
        free: Work of a layer whose values were kept.
        pointwise: Work of a layer whose norms and activation functions are computed again.
        recomputed: Work of a layer whose MLP, or all of which, is computed again.
        dequantized: Copies of a quantized head's weight, float32, while its logits are made.
        cache_share: What the allocator may hold back, of what comes and goes.
        query_block: Queries that meet only the keys before them, so that about half of the weights exist; 0 for all.
    """

    value_bytes: int
    inner: float
    kv: float
    longest_scores: int
    free: Work
    pointwise: Work
    recomputed: Work
    dequantized: float = 0.0
    cache_share: float = 0.0
    query_block: int = 0


CPU_STREAM = Backend(
    value_bytes=4,
    inner=4.0,  # gate, up, the sigmoid, and the product when its linear is adapted
    kv=2.0,
    longest_scores=512,  # models.stream.KEPT_SCORES
    query_block=64,  # models.stream.QUERY_BLOCK
    free=Work(inner=6.0, width=8.0, queries=4.0, attention=2.4),
    pointwise=Work(inner=10.0, width=9.0, queries=4.0, attention=2.4),
    recomputed=Work(inner=15.0, width=9.0, queries=5.0, kv=6.0, scores=1.4, attention=2.8),
    dequantized=2.8,
)
CPU_PADDED = Backend(
    value_bytes=4,
    inner=5.0,
    kv=2.0,
    longest_scores=10**9,
    free=Work(inner=6.0, width=8.0, queries=4.0, attention=3.4),
    pointwise=Work(inner=10.0, width=9.0, queries=4.0, attention=3.4),
    recomputed=Work(inner=18.0, width=9.0, queries=5.0, kv=6.0, scores=1.3, attention=2.4),
    dequantized=2.8,
)
METAL = Backend(
    value_bytes=2,
    inner=5.0,
    kv=2.3,
    longest_scores=0,
    free=Work(inner=2.0, width=4.0, queries=2.0),
    pointwise=Work(inner=4.0, width=4.0, queries=2.0),
    recomputed=Work(inner=5.0, width=4.0, queries=2.0, kv=2.3),
    cache_share=0.25,
)


@dataclass(frozen=True, slots=True)
class Learner:
    """What is trained, and by which optimizer.

    Attributes:
        linears: Names of the adapted linear layers, as `linears` gives them.
        layers: How many of the last layers have them.
        rank: Of the adapter; 0 when the whole model is trained.
        is_float32: LoRA multiplies in float32, whatever the model computes in.
    """

    linears: frozenset[str]
    layers: int
    rank: int
    kind: str
    optimizer: str
    is_float32: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """One micro-batch.

    Attributes:
        tokens: Of the stream.
        laid: Of the attention rows; more, where rows share a prompt.
        longest: Tokens of its longest row.
        supervised: Positions that are trained on.
        recompute: One of `LEVELS`.
        accumulates: There are several in an update, so gradients of earlier ones wait.
    """

    tokens: int
    laid: int
    longest: int
    supervised: int
    recompute: str
    accumulates: bool


def linears(shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the linear layers of one layer: name to (inputs, outputs)."""
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = {"q_proj": (width, queries), "k_proj": (width, kv), "v_proj": (width, kv), "o_proj": (queries, width)}
    mlp = {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}
    return {f"self_attn.{name}": size for name, size in attention.items()} | {
        f"mlp.{name}": size for name, size in mlp.items()
    }


def choose_linears(shape: Shape, targets: str | list[str]) -> frozenset[str]:
    """Return the names of the linear layers that `lora.targets` means."""
    names = linears(shape)
    if isinstance(targets, list):
        return frozenset(name for name in names if any(name == own or name.endswith("." + own) for own in targets))
    part = {"attention": "self_attn.", "mlp": "mlp.", "all": ""}[targets]
    return frozenset(name for name in names if name.startswith(part))


def count_adapter(shape: Shape, learner: Learner) -> int:
    """Count the values of an adapter."""
    sizes = [size for name, size in linears(shape).items() if name in learner.linears]
    magnitudes = sum(outputs for _, outputs in sizes) if learner.kind == "dora" else 0
    return learner.layers * (sum(learner.rank * (inputs + outputs) for inputs, outputs in sizes) + magnitudes)


def quantized_bytes(values: int, *, bits: int, group_size: int, value_bytes: int) -> int:
    """Return the bytes of quantized weights: codes, and a scale and a bias a group."""
    return int(values * (bits / 8 + 2 * value_bytes / group_size))


def state_bytes(trained: int, learner: Learner) -> int:
    """Return what stays from update to update: the adapter and the optimizer's moments, float32."""
    own = 1 if learner.rank else 0
    return trained * FLOAT32_BYTES * (own + MOMENTS[learner.optimizer])


def update_bytes(shape: Shape, trained: int, learner: Learner) -> int:
    """Return what an update needs beside the state: gradients, and what the optimizer makes on the way."""
    copies = GRADIENT_COPIES + SCRATCH.get(learner.optimizer, 0)
    matrix = (learner.rank or shape.hidden_size) * shape.intermediate_size
    embedding = 0 if learner.rank else AHEAD_EMBEDDINGS[learner.optimizer] * shape.vocab_size * shape.hidden_size
    return int(FLOAT32_BYTES * (trained * copies + min(AHEAD_MATRICES * matrix + embedding, 4 * trained)))


def kept_values(shape: Shape, learner: Learner, part: Pass, backend: Backend) -> float:
    """Return the values that one layer keeps for the backward pass, a token.

    Everything is kept that a later gradient is made of, and is not computed again: the inputs of norms, attention and
    MLP always, the input of a linear layer only when that is adapted.
    """
    if part.recompute == "layer":
        return shape.hidden_size
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    names = {name.rpartition(".")[2] for name in learner.linears}
    kept: float = 2 * width + (queries if "o_proj" in names else 0)
    if part.recompute == "none":
        kept += (backend.inner - 1) * inner
        kept += width if names & {"q_proj", "k_proj", "v_proj"} else 0
        kept += width if names & {"gate_proj", "up_proj"} else 0
        kept += inner if "down_proj" in names else 0
        kept += learner.rank * len(names) if learner.rank else 2 * width
        read = sum(size[0] for name, size in linears(shape).items() if name in learner.linears)
        kept += 2 * read if learner.is_float32 and learner.rank and backend.value_bytes < FLOAT32_BYTES else 0
    elif part.recompute == "pointwise":
        kept += 2 * inner
    kept += sum(size[1] for size in linears(shape).values()) + 2 * width if learner.kind == "dora" else 0
    kept += queries + kv if shape.family in NORMED_HEADS else 0
    kept += 2 * width if shape.family in DOUBLE_NORMS else 0
    in_rows = queries + backend.kv * kv
    in_rows += 0 if part.longest > backend.longest_scores else score_values(shape, part, backend)
    return kept + in_rows * part.laid / part.tokens


def unread_values(shape: Shape, learner: Learner, part: Pass, backend: Backend) -> float:
    """Return the values that a layer keeps the fewer, a token, since the last one is narrowed (see `models.stream`)."""
    if shape.family not in STREAMED:
        return 0.0
    names = {name.rpartition(".")[2] for name in learner.linears}
    narrowed = shape.hidden_size + (backend.inner - 1) * shape.intermediate_size
    narrowed += shape.heads * shape.head_dim if "o_proj" in names else 0
    narrowed += shape.hidden_size if names & {"gate_proj", "up_proj"} else 0
    narrowed += shape.intermediate_size if "down_proj" in names else 0
    return narrowed * (1.0 - part.supervised / part.tokens) / learner.layers


def score_values(shape: Shape, part: Pass, backend: Backend) -> float:
    """Return the attention weights of a layer, a token of the longest row."""
    longest, block = part.longest, backend.query_block
    return shape.heads * (min(longest, (longest + block) / 2) if block else longest)


def activation_bytes(shape: Shape, learner: Learner, part: Pass, backend: Backend) -> tuple[int, int]:
    """Return what all layers keep for the backward pass, and what comes and goes while one is computed."""
    width, queries, kv = shape.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    share = part.laid / part.tokens
    scores = score_values(shape, part, backend) * share
    work = {"none": backend.free, "pointwise": backend.pointwise}.get(part.recompute, backend.recomputed)
    base = work.width * width + (work.queries * queries + work.kv * kv) * share
    mlp = base + work.inner * shape.intermediate_size
    mlp += work.scores * scores if part.longest <= backend.longest_scores else 0
    whole = kept_values(shape, learner, replace(part, recompute="none"), backend)
    attention = base + work.attention * scores + (whole if part.recompute == "layer" else 0)
    unread = unread_values(shape, learner, part, backend) if part.recompute == "none" else 0.0
    kept = learner.layers * (kept_values(shape, learner, part, backend) - unread)
    a_value = part.tokens * backend.value_bytes
    norms = FLOAT32_BYTES * DORA_MATRICES * width * shape.intermediate_size if learner.kind == "dora" else 0
    return int(kept * a_value), int(max(max(mlp, attention) * a_value, norms)) + SMALL_BYTES


def head_bytes(shape: Shape, learner: Learner, part: Pass, backend: Backend, *, quantized: bool) -> int:
    """Return what comes and goes while the log-probabilities are made."""
    rows, vocabulary = part.supervised, shape.vocab_size
    states = 12 * part.tokens * shape.hidden_size * backend.value_bytes
    if shape.family not in SPLIT_HEADS:
        every = part.tokens * vocabulary * (backend.value_bytes + FLOAT32_BYTES)
        return int(states + every + UNKNOWN_HEAD_COPIES * rows * vocabulary * FLOAT32_BYTES)
    if not learner.rank:
        return int(states + TRAINED_HEAD_COPIES * rows * vocabulary * FLOAT32_BYTES)
    chunks = min(-(-rows // CHUNK_ROWS), LIVE_CHUNKS)
    copies = backend.dequantized + (chunks > 1) if backend.dequantized and quantized else 0
    weight = copies * vocabulary * shape.hidden_size
    return int(states + FLOAT32_BYTES * (2 * chunks * min(rows, CHUNK_ROWS) * vocabulary + weight))


def pass_bytes(shape: Shape, learner: Learner, part: Pass, backend: Backend, *, quantized: bool) -> int:
    """Return what comes and goes in a pass: what is counted here of what a trace sees."""
    kept, layer = activation_bytes(shape, learner, part, backend)
    return kept + max(layer, head_bytes(shape, learner, part, backend, quantized=quantized))


def peak_parts(
    shape: Shape,
    learner: Learner,
    part: Pass,
    backend: Backend,
    *,
    weight_bytes: int,
    trained: int,
    quantized: bool,
    scale: float = 1.0,
) -> Mapping[str, int]:
    """Return the bytes by part at the highest moment of training.

    There are three candidates: the head or the last layer on the way back, the update, and loading.

    Args:
        shape: Of the model.
        learner: What is trained.
        part: The largest micro-batch.
        backend: Where it runs.
        weight_bytes: Of the model in memory, frozen or not.
        trained: Number of values that are trained.
        quantized: The head is quantized.
        scale: What a pass takes, of what is counted here; known where it was traced.

    Returns:
        weights · adapter (with gradients and the optimizer's state) · activations · head · cache.
    """
    counted = (
        *activation_bytes(shape, learner, part, backend),
        head_bytes(shape, learner, part, backend, quantized=quantized),
    )
    kept, layer, head = (int(scale * size) for size in counted)
    state, update = state_bytes(trained, learner), update_bytes(shape, trained, learner)
    waiting = trained * FLOAT32_BYTES * part.accumulates
    largest = shape.vocab_size * shape.hidden_size
    loading = largest * LOADED_COPIES["quantized" if quantized else "float"] * (backend.value_bytes == FLOAT32_BYTES)
    backward = kept + max(layer, head)
    cache = int(backend.cache_share * backward)
    parts = {"weights": weight_bytes, "adapter": state + waiting, "activations": kept, "head": 0, "cache": cache}
    if state + max(update, waiting + backward) < loading:
        return {**parts, "weights": weight_bytes + loading, "adapter": 0, "activations": 0}
    if update > waiting + backward:
        return {**parts, "adapter": state + update, "activations": 0}
    return {**parts, "head": head} if head > layer else {**parts, "activations": kept + layer}


def loaded_bytes(model: Loaded, *, quantize: int | None, group_size: int, is_gpu: bool) -> int:
    """Return what a model's weights take in memory as they answer, cast or quantized while loading."""
    stored_bytes = (model.weight_bytes - model.code_bytes) / max(1, model.float_values)
    value_bytes = FLOAT32_BYTES if not is_gpu or stored_bytes > 3 else 2
    if quantize and not model.is_quantized:
        return quantized_bytes(model.parameters, bits=quantize, group_size=group_size, value_bytes=value_bytes)
    return model.code_bytes + model.float_values * value_bytes


def cache_bytes(shape: Shape, *, tokens: int, is_gpu: bool) -> int:
    """Return what keys and values of so many tokens take."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * (2 if is_gpu else FLOAT32_BYTES)
