"""The commands that take a result to other tools: fuse, merge, export.

The rule: as in `main`, a command is one call of `macft.api`, and its answer shown: the result's path on stdout, what
was kept and what the receiving tool does with it on stderr.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from macft import api
from macft.cli import tables
from macft.cli.arguments import AsJson, Files
from macft.cli.render import PlainView, narrate, open_view
from macft.cli.watch import do_and_watch
from macft.errors import Problem, RecipeError
from macft.events import Event, ResultWritten
from macft.run import Run

Bits = Literal["4", "8"]
Floats = Literal["float32", "bfloat16", "float16"]
Target = Literal["mlx", "peft", "gguf-adapter", "gguf", "ollama", "lmstudio"]
GgufType = Literal["f16", "bf16", "f32", "q8_0"]
Way = Literal["concat", "linear"]


def fuse(
    name: str,
    /,
    *,
    out: Path | None = None,
    quantize: Bits | None = None,
    dequantize: bool = False,
    dtype: Floats | None = None,
    model: str | None = None,
    data: Files | None = None,
    force: bool = False,
    json: AsJson = False,
    plain: bool = False,
) -> int:
    """Make an adapter part of its base: a model that mlx-lm, LM Studio and transformers load.

    The sum is made from the original weights, one tensor at a time, so a model larger than memory is fused too. Then
    Base, tuned and fused read held-out rows: "kept 99.8% of what training changed". Under 95% it is taken away again.

    Args:
        name: A run, or an adapter's folder (mlx-lm's or PEFT's).
        out: The new model's folder; in the job's own folder when left out.
        quantize: Quantize the result to 4 or 8 bits; 4 bits often lose what a weak adapter changed.
        dequantize: Add to the base as training saw it, if that was quantized while loading, not to the original.
        dtype: Of the weights; the base's own when left out.
        model: The base, when the adapter does not name one that is here.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost, or without comparing.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    return _do(
        lambda: api.fuse(
            name,
            out=out,
            model=model,
            quantize=int(quantize) if quantize else None,
            dequantize=dequantize,
            dtype=dtype or "",
            data=_absolute(data),
            force=force,
        ),
        json=json,
        plain=plain,
    )


def export(
    name: str,
    /,
    *,
    to: Target,
    out: Path | None = None,
    type_: Annotated[GgufType, Parameter(name="--type")] = "f16",
    quantize: Bits | None = None,
    ollama_base: str = "",
    system: str = "",
    model: str | None = None,
    data: Files | None = None,
    force: bool = False,
    json: AsJson = False,
    plain: bool = False,
) -> int:
    """Write a result for another tool, with a model card.

    mlx: a fused folder for mlx-lm and LM Studio. peft: an adapter for transformers. gguf-adapter: an adapter for
    llama.cpp. gguf: a fused model for llama.cpp and LM Studio. ollama: the same, and a Modelfile that asks as training
    did. lmstudio: a fused model that LM Studio lists at once.

    Args:
        name: A run, an adapter's folder (mlx-lm's or PEFT's), or a model's folder.
        to: mlx, peft, gguf-adapter, gguf, ollama or lmstudio.
        out: The new folder; in the job's own folder when left out. For lmstudio, its folder of models.
        type_: Of the numbers in a GGUF file; f16 when left out.
        quantize: Quantize an MLX model to 4 or 8 bits.
        ollama_base: Ollama's name of the base, like smollm2:135m: then only the adapter is written.
        system: Ollama's system message, instead of the template's own.
        model: The base, when the adapter does not name one that is here.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost, or without comparing.
        json: Print JSON.
        plain: Lines instead of bars.
    """
    return _do(
        lambda: api.export(
            name,
            to=to,
            out=out,
            model=model,
            gguf_type=type_,
            quantize=int(quantize) if quantize else None,
            ollama_base=ollama_base,
            system=system,
            data=_absolute(data),
            force=force,
        ),
        json=json,
        plain=plain,
    )


def merge(
    parts: Annotated[list[str], Parameter(required=True)],
    /,
    *,
    out: Path,
    way: Way = "concat",
    json: AsJson = False,
) -> None:
    """Make one adapter of several: NAME:0.7 NAME:0.3.

    Args:
        parts: Runs or adapter folders of one base, each with its strength; 1 when left out.
        out: The new adapter's folder.
        way: concat adds the ranks up and is exact; linear keeps the rank and only comes near. concat when left out.
        json: Print JSON.
    """
    if len(parts) < 2:
        raise RecipeError([Problem("", "merging takes two adapters or more")], fix="Like A:0.7 B:0.3.")
    read = [_part(part) for part in parts]
    folder = api.merge(read, out=out, way=way)
    if json:
        named = [{"adapter": name, "strength": strength} for name, strength in read]
        tables.print_json({"merged": {"path": str(folder), "way": way, "parts": named}})
        return
    print(folder)
    narrate("mlx-lm loads it with --adapter-path; `macft fuse` and `macft export` take it like any other")


def _part(text: str) -> tuple[str, float]:
    name, colon, strength = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(strength)
    except ValueError:
        raise RecipeError([Problem(text, f"{strength!r} is no strength (expected a number, like A:0.7)")]) from None


def _absolute(data: list[str] | None) -> list[str]:
    return [str(Path(path).expanduser().resolve()) for path in data or []]


def _do(start: Callable[[], Run], *, json: bool, plain: bool) -> int:
    written: list[ResultWritten] = []

    def keep(event: Event) -> None:
        if isinstance(event, ResultWritten):
            written.append(event)

    view = PlainView(lambda _: None) if json else open_view(plain=plain)
    run, state = do_and_watch(start, view, keep)
    for result in written:
        if json:
            tables.print_json({"result": _values(run, result)})
        else:
            print(result.path)
    return state.ended.exit_code if state.ended else 0


def _values(run: Run, result: ResultWritten) -> dict[str, Any]:
    return {
        "to": result.to,
        "path": result.path,
        "size_bytes": result.size_bytes,
        **{key: result.metrics.get(key) for key in ("kept", "kl", "kl_base", "agreement", "tokens")},
        "notes": result.notes,
        "job": run.name,
    }
