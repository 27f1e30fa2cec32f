"""Base and tuned in one batch against two streams of stock mlx-lm: `python -m tests.benchmarks.voices RUN`.

Both sides are in this process, take turns, and read the same prompt each time; what counts is CPU seconds, since other
programs share the machine. Products with the base's weights are counted, and the memory that a second voice adds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import stream_generate

from macft.chat.compare import Batch, open_voices
from macft.chat.decode import Decoder, Request
from macft.chat.panes import Sampling
from macft.chat.sources import find_sources
from macft.data.chat_template import render_prompt
from macft.data.examples import Message
from macft.machine import home, read_machine, runs_folder
from macft.models.load import load_tokenizer
from tests.greedy import load_stock

PROMPT = "Extract the parts of this US address as JSON: 12 Oak St, Reno, NV"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sources = find_sources([options.run], home=home(), runs=runs_folder())
    before = mx.get_active_memory()
    one = open_voices(sources[:1], read_machine())
    of_one = mx.get_active_memory() - before
    del one
    before = mx.get_active_memory()
    voices = open_voices(sources, read_machine())
    of_two = mx.get_active_memory() - before
    if not isinstance(voices, Batch):
        raise SystemExit("the voices do not share a batch")
    adapters = sum(value.nbytes for name, value in _parameters(voices._model) if "lora_" in name)
    print(f"memory of two voices without adapters / of one: {(of_two - adapters) / of_one:.4f}")
    tokenizer = load_tokenizer(sources[0].folder)
    tokenizer.eos_token_ids = []
    ids = render_prompt([Message("user", PROMPT)], tokenizer)
    decoder = Decoder(voices._model, [], rows=voices._rows)
    stock = [load_stock(source.folder, source.adapter) for source in sources]

    def ours() -> list[list[int]]:
        said: list[list[int]] = [[], []]
        for step in decoder.run([Request(ids, Sampling(max_tokens=options.tokens), voice) for voice in (0, 1)]):
            said[step.request].append(step.token_id)
        return said

    def theirs() -> list[list[int]]:
        answers = (stream_generate(model, tokenizer, ids, max_tokens=options.tokens) for model in stock)
        return [[part.token for part in answer] for answer in answers]

    print(f"the same tokens: {ours() == theirs()}")
    print(f"products with a weight of the base, a step of both voices: {_count_products(voices._model, voices)}")
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for _ in range(options.rounds):
        for side, spent in seconds.items():
            started = time.process_time()
            side()
            spent.append(time.process_time() - started)
    for side, spent in seconds.items():
        rate = 2 * options.tokens / statistics.median(spent)
        print(f"{side.__name__}: {', '.join(f'{value:.2f}' for value in spent)} CPU s, {rate:.1f} tokens a CPU second")
    ratios = sorted(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    print(f"ratio: median {statistics.median(ratios):.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f}")


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return tree_flatten(model.parameters())


def _count_products(model: nn.Module, voices: Batch) -> str:
    """Run one step of two rows and count the calls of the base's linear layers."""
    calls = 0

    def counting(kind: type[nn.Module]) -> type[nn.Module]:
        def call(self: nn.Module, x: mx.array) -> mx.array:
            nonlocal calls
            calls += 1
            return kind.__call__(self, x)

        return type(kind.__name__, (kind,), {"__call__": call})

    linears = [module for module in model.modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)]
    kinds = [type(module) for module in linears]
    for module, kind in zip(linears, kinds, strict=True):
        module.__class__ = counting(kind)
    voices._rows.choose([0, 1])
    mx.eval(model(mx.array([[1], [1]])))
    for module, kind in zip(linears, kinds, strict=True):
        module.__class__ = kind
    return f"{calls} of {len(linears)} linear layers"


if __name__ == "__main__":
    main()
