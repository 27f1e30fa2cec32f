"""Chat templates written from their published formats, each with a small tokenizer of the right kind.

Byte-level BPE as in GPT-2 or as in Llama 3 and Qwen; SentencePiece that puts a space before every piece of text
(Llama 2, Phi-3, Zephyr), only where the text starts (Mistral v0.3), or nowhere (Gemma).
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
CORPUS = [
    "system user assistant model tool [INST] [/INST] <<SYS>> <</SYS>> User: Assistant: You are a helpful assistant.",
    "The quick brown fox jumps over the lazy dog, and 12 hens lay 345 eggs a day; what is the weather in Paris today?",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\n\nCutting Knowledge Date: December 2023\n\n',
    "人工智能是工程和科学的分支。你好，今天天气怎么样？  two spaces\n\n\nthree lines\tand a tab",
] * 4
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Format:
    """A template, its tokenizer, and what it is known to do.

    Attributes:
        stop: What ends an assistant's turn.
        lead: What the template writes between the prompt and the answer.
        is_trimmed: Whether the answer's white space is cut off.
        system: How a system message fares: `kept`, or `merged` into the first user turn.
    """

    name: str
    special: tuple[str, ...]
    stop: str
    kind: str = GPT2
    lead: str = ""
    is_trimmed: bool = False
    system: str = "kept"
    bos: str | None = None
    eos: str | None = None
    plain: tuple[str, ...] = ()
    rstrip: bool = False
    has_tools: bool = False

    def __str__(self) -> str:
        return self.name


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")
THINK = ("<think>", "</think>")
CALLS = ("<tool_call>", "</tool_call>")
MISTRAL = (
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
)
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>")

FORMATS = [
    Format("chatml", CHATML, "<|im_end|>"),
    Format("smollm2", CHATML, "<|im_end|>"),
    Format("llama2", (), "</s>", "every", " ", True, bos="<s>", eos="</s>"),
    Format("llama3", LLAMA3_TOKENS, "<|eot_id|>", LLAMA3, "", True, bos="<|begin_of_text|>", has_tools=True),
    Format("mistral_v1", (), "</s>", "every", " ", bos="<s>", eos="</s>"),
    Format("mistral_v3", MISTRAL, "</s>", "first", " ", False, "merged", bos="<s>", eos="</s>", has_tools=True),
    Format(
        "gemma",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "never",
        "",
        True,
        "merged",
        "<bos>",
    ),
    Format("phi3", PHI3, "<|end|>", "every", bos="<s>", rstrip=True),
    Format("phi4", (*CHATML, "<|im_sep|>"), "<|im_end|>", LLAMA3),
    Format("qwen25", CHATML, "<|im_end|>", LLAMA3, plain=CALLS, has_tools=True),
    Format("qwen3", CHATML, "<|im_end|>", LLAMA3, plain=(*CALLS, *THINK), has_tools=True),
    Format("zephyr", (), "</s>", "every", bos="<s>", eos="</s>"),
    Format("command_r", (*TURNS, "<BOS_TOKEN>"), "<|END_OF_TURN_TOKEN|>", GPT2, "", True, bos="<BOS_TOKEN>"),
    Format("deepseek_v2", DEEPSEEK, DEEPSEEK[1], GPT2, " ", bos=DEEPSEEK[0]),
    Format(
        "deepseek_r1", (*DEEPSEEK, "<｜User｜>", "<｜Assistant｜>"), DEEPSEEK[1], LLAMA3, bos=DEEPSEEK[0], plain=THINK
    ),
    Format("glm4", GLM, "<|endoftext|>", LLAMA3),
    Format("olmo2", ("<|endoftext|>",), "<|endoftext|>", LLAMA3, bos="<|endoftext|>"),
    Format("granite", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"), "<|end_of_text|>"),
    Format("smollm3", CHATML, "<|im_end|>", LLAMA3, plain=THINK),
]
BY_NAME = {format.name: format for format in FORMATS}


@functools.cache
def load(format: Format | str, *, template: bool = True) -> TokenizerWrapper:
    """Build a format's tokenizer, wrapped as mlx-lm wraps the ones that it loads."""
    format = BY_NAME[format] if isinstance(format, str) else format
    backend = _byte_level(format.kind) if "\\p" in format.kind else _sentencepiece(format.kind)
    ends = [token for token in (format.bos, format.eos) if token and token not in format.special]
    backend.add_special_tokens(
        [AddedToken(t, rstrip=format.rstrip, normalized=False) for t in (*ends, *format.special)]
    )
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in format.plain])
    if format.bos:
        bos = (format.bos, backend.token_to_id(format.bos))
        backend.post_processor = processors.TemplateProcessing(single=f"{format.bos} $A", special_tokens=[bos])
    eos = format.eos or format.stop
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=format.bos, eos_token=eos)
    if template:
        inner.chat_template = (TEMPLATES / f"{format.name}.jinja").read_text(encoding="utf-8")
    stops = {inner.convert_tokens_to_ids(token) for token in (eos, "<|user|>") if token in inner.get_vocab()}
    return TokenizerWrapper(inner, eos_token_ids=stops)


def _byte_level(pattern: str) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentencepiece(spaces: str) -> Tokenizer:
    """Build a BPE over characters with byte fallback; `spaces` says which pieces get a space in front."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    state = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *state["vocab"]]
    merges = [tuple(pair) for pair in state["merges"]]
    model = models.BPE(
        {piece: id for id, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = Tokenizer(model)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces == "every":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = "first" if spaces == "first" else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    if spaces != "never":
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    return backend
