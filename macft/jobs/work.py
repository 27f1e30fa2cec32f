"""A job from its source to the folder that another tool reads.

The rule: what cannot work is refused before anything is written; what was fused is compared with the tuned model before
it is handed over, and taken away again when it lost what training changed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.nn as nn

from macft.data.cache import prepare_once
from macft.data.chat_template import find_stop_ids
from macft.data.prepare import AnyRows, prepare
from macft.errors import DataError, DoesNotFit, MacftError, ModelError, Stopped
from macft.events import Event, JobPlanned, PhaseProgress, ResultWritten, RunStarted
from macft.jobs.job import Job
from macft.jobs.notes import NOTES
from macft.machine import GIB, free_disk_bytes, home
from macft.measure.kept import Kept, Probe, make_probe, measure_kept
from macft.models.adapters import load_adapter, read_adapter, read_adapter_config
from macft.models.describe import describe, fingerprint, tokenizer_hash
from macft.models.export.card import write_card
from macft.models.export.gguf_adapter import write_gguf_adapter
from macft.models.export.gguf_model import KINDS, check_gguf, write_gguf
from macft.models.export.lmstudio import PUBLISHER, link_into
from macft.models.export.ollama import write_modelfile
from macft.models.fuse import Fused, prepare_fuse, write_fused
from macft.models.load import load_lazily, load_tokenizer
from macft.models.peft import WEIGHTS as PEFT_WEIGHTS
from macft.models.peft import save_peft_tensors, to_peft
from macft.models.shards import new_folder, refuse_full
from macft.recipe import DataTable, Recipe, load_recipe
from macft.run import Run
from macft.state import RunState
from macft.training.process import Requests

ENOUGH = 0.95
"""Share of what training changed that must be left."""
MODEL, EXPORT = "model", "export"
_FUSED_AS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "float32"}
"""What is fused before it becomes a GGUF file of a type; Q8_0 is rounded once, from float32."""


class Work:
    """A job in the doing.

    Args:
        job: What to do.
        run: Its folder, locked.
        requests: Asked often whether the person wants it to stop.
        free_disk: Says how many bytes are free where a path is.
    """

    def __init__(
        self, job: Job, run: Run, requests: Requests, *, free_disk: Callable[[Path], int] = free_disk_bytes
    ) -> None:
        self.job, self.folder, self.requests, self.free_disk = job, run, requests, free_disk
        self.source = Path(job.source)
        self.base = Path(job.base or job.source)
        trained = Run(Path(job.run)) if job.run else None
        self.state: RunState | None = trained.state() if trained else None
        self.recipe: Recipe | None = load_recipe(trained.path / "recipe.toml") if trained else None
        told = read_adapter_config(self.source).get("macft", {}) if job.is_adapter else self._told()
        self.origin: dict[str, Any] = told

    def run(self) -> None:
        """Do it; events say how far it is.

        Raises:
            MacftError: It cannot be done, or what was made lost too much; nothing is left behind.
        """
        self.emit(self._started())
        with self._refused_early():
            if self.job.to in {"peft", "gguf-adapter"} or self.job.ollama_base:
                self._write_adapter()
            elif self.job.to in {"mlx", "lmstudio"}:
                self._write_model()
            else:
                self._write_gguf()

    @property
    def is_tuned(self) -> bool:
        """Whether it is known what the source was before it was trained."""
        return self.job.is_adapter or bool(self.job.base)

    def emit(self, event: Event) -> None:
        """Tell what happened."""
        self.folder.append(event)

    # The three kinds of results

    def _write_model(self) -> None:
        fused = self._fuse(self.job.dtype)
        out = self._out(MODEL)
        self._plan(fused, fused.size_bytes)
        probe = self._probe()
        with new_folder(out) as aside:
            kept = self._write_and_compare(fused, aside, probe)
            self._card(aside, kept)
        if self.job.to == "lmstudio":
            out = link_into(Path(self.job.lmstudio), out, self.job.name)
        self._done(out, kept, [] if fused.in_transformers else ["transformers does not load it"])

    def _write_gguf(self) -> None:
        try:
            check_gguf(self.base)
        except ModelError:
            if self.job.to != "ollama":
                raise
            self._write_folder_for_ollama()
            return
        kind = self.job.gguf_type
        fused = self._fuse(_FUSED_AS[kind])
        self._plan(fused, 2 * fused.size_bytes, dtype=KINDS[kind][0])
        probe, out = self._probe(), self._out(EXPORT)
        with new_folder(out) as aside, self._meanwhile() as model:
            kept = self._write_and_compare(fused, model, probe)
            file = f"{self.job.name}-{kind}.gguf"
            write_gguf(aside / file, model, kind=kind, name=self.job.name, progress=self._teller("convert"))
            notes = self._modelfile(aside, base=f"./{file}") if self.job.to == "ollama" else []
            self._card(aside, kept)
        self._done(out, kept, notes)

    def _write_folder_for_ollama(self) -> None:
        """Leave the conversion to Ollama, which knows families that macft does not write as GGUF."""
        fused = self._fuse("bfloat16")
        self._plan(fused, fused.size_bytes)
        probe, out = self._probe(), self._out(EXPORT)
        with new_folder(out) as aside:
            (aside / MODEL).mkdir()
            kept = self._write_and_compare(fused, aside / MODEL, probe)
            notes = self._modelfile(aside, base=f"./{MODEL}")
            self._card(aside, kept)
        said = "macft does not write this family as GGUF: `ollama create` converts the folder, if Ollama knows it"
        self._done(out, kept, [said, *notes])

    def _write_adapter(self) -> None:
        config, weights = read_adapter(self.source)
        size = sum(value.nbytes for value in weights.values())
        self._tell_plan(size, "the adapter", "float32")
        out, notes = self._out(EXPORT), []
        with new_folder(out) as aside:
            if self.job.to == "peft":
                told, tensors = to_peft({**config, "base_model_name_or_path": self.job.base_name}, weights)
                save_peft_tensors(aside / PEFT_WEIGHTS, tensors)
                (aside / "adapter_config.json").write_text(json.dumps(told, indent=2, sort_keys=True), encoding="utf-8")
            else:
                file = f"{self.job.name}-lora.gguf"
                write_gguf_adapter(aside / file, config, weights, describe(self.base), name=self.job.name)
                if self.job.to == "ollama":
                    notes = self._modelfile(aside, base=self.job.ollama_base, adapter=f"./{file}")
            self._card(aside, None)
        self._done(out, None, notes)

    # Their parts

    def _fuse(self, dtype: str) -> Fused:
        job = self.job
        adapter = self.source if job.is_adapter else None
        base = self.base if job.is_adapter else self.source
        return prepare_fuse(base, adapter, quantize=job.quantize, dequantize=job.dequantize, dtype=dtype or None)

    def _write_and_compare(self, fused: Fused, folder: Path, probe: Probe | None) -> Kept | None:
        write_fused(fused, folder, progress=self._teller("write"))
        provenance = {**self.origin, "version": version("macft"), "base_model": self.job.base_name}
        (folder / "macft.json").write_text(json.dumps(provenance, indent=2), encoding="utf-8")
        if probe is None:
            return None
        kept = measure_kept(
            probe,
            tuned=self._tuned,
            base=self._untuned if self.is_tuned else None,
            made=lambda: load_lazily(folder)[0],
            progress=self._teller("compare"),
        )
        if kept.share < ENOUGH and not self.job.force:
            lost = f"{kept.kl_made:.2g} of {kept.kl_base:.2g} nats a token"
            raise MacftError(f"this kept {kept.share:.1%} of what training changed (lost: {lost})", fix=self._way_out())
        return kept

    def _way_out(self) -> str:
        job, trained = self.job, self.origin.get("quantize")
        if job.quantize == 4:
            return "`--quantize 8` or no `--quantize` keeps more; `--force` writes it all the same."
        if trained and not job.dequantize:
            return "`--dequantize` adds to the base that training saw; `--force` writes it all the same."
        return "`--dtype float32` keeps all of it; `--force` writes it all the same."

    def _tuned(self) -> nn.Module:
        if not self.job.is_adapter:
            return load_lazily(self.source)[0]
        model = self._untuned()
        load_adapter(model, self.source, base_fingerprint=fingerprint(self.base))
        return model.eval()

    def _untuned(self) -> nn.Module:
        # As in training: an adapter learns the errors of its base's quantization too.
        bits, size = self.origin.get("quantize"), self.origin.get("quantize_group_size") or 64
        return load_lazily(self.base, quantize=bits, group_size=size)[0]

    def _probe(self) -> Probe | None:
        if not self.is_tuned and not self.job.data:
            return None  # a whole model that does not say what it was: it can only be compared with itself
        try:
            rows = self._rows()
            return make_probe(rows, describe(self.base).vocab_size)
        except DataError as error:
            if self.job.force or not (self.job.is_adapter or self.job.quantize):
                return None
            first = str(error.problems[0])
            fix = "`--data FILES` names rows to compare on; `--force` writes without comparing."
            raise MacftError(f"there are no held-out rows to compare on ({first})", fix=fix) from None

    def _rows(self) -> AnyRows:
        tokenizer = load_tokenizer(self.base)
        tokenizer.eos_token_ids = find_stop_ids(tokenizer)
        facts, recipe = describe(self.base), self.recipe
        data = recipe.data if recipe else DataTable()
        if self.job.data:
            data = data.model_copy(update={"train": self.job.data, "valid": [], "test": [], "valid_fraction": 0.0})
        longest, method = min(recipe.max_seq_length if recipe else 2048, facts.context or 2048), "sft"
        if recipe and not self.job.data:
            method = recipe.method
        evaluate = recipe.evaluate if recipe else None
        prepared = prepare_once(
            home() / "cache" / "rows",
            data,
            (method, longest, facts.vocab_size, evaluate, tokenizer_hash(self.base)),
            lambda: prepare(
                data,
                tokenizer,
                method=method,
                max_seq_length=longest,
                vocab_size=facts.vocab_size,
                evaluate=evaluate,
                progress=self._teller("tokenize"),
            ),
        )
        return prepared.valid if len(prepared.valid) else prepared.train

    def _modelfile(self, folder: Path, *, base: str, adapter: str = "") -> list[str]:
        thinking = bool(self.origin.get("enable_thinking", False))
        tokenizer = load_tokenizer(self.base)
        return write_modelfile(
            folder, tokenizer, base=base, adapter=adapter, system=self.job.system, enable_thinking=thinking
        )

    def _card(self, folder: Path, kept: Kept | None) -> None:
        said = {}
        if kept and self.is_tuned:
            said = {"kept of what training changed": f"{kept.share:.2%} (of {kept.tokens} tokens)"}
        elif kept:
            said = {"greedy tokens as the original's": f"{kept.agreement:.1%} (of {kept.tokens})"}
        write_card(
            folder,
            name=self.job.name,
            to=self.job.to,
            base=self.job.base_name,
            licence=describe(self.base).licence,
            recipe=self.recipe,
            state=self.state,
            facts=said,
        )

    # What is told

    def _started(self) -> RunStarted:
        adapter = self.recipe.adapter if self.recipe else "lora" if self.job.is_adapter else "full"
        versions = {name: version(name) for name in ("macft", "mlx", "mlx-lm", "transformers")}
        return RunStarted(
            kind=self.job.kind,
            method=self.job.kind,
            adapter=adapter,
            model=self.job.base_name or self.job.name,
            versions=versions,
        )

    def _plan(self, fused: Fused, size_bytes: int, *, dtype: str = "") -> None:
        self._tell_plan(size_bytes, fused.source, dtype or fused.dtype, fused.bits)

    def _tell_plan(self, size_bytes: int, source: str, dtype: str, bits: int | None = None) -> None:
        free = self.free_disk(self.folder.path if not self.job.out else Path(self.job.out))
        self.emit(
            JobPlanned(to=self.job.to, source=source, dtype=dtype, bits=bits, size_bytes=size_bytes, free_bytes=free)
        )
        if free < size_bytes and not self.job.force:
            needed = f"{size_bytes / GIB:.1f} GB of disk, and {free / GIB:.1f} GB are free"
            raise DoesNotFit(f"this needs {needed}", fix="Name a folder on another disk with --out.")

    def _done(self, out: Path, kept: Kept | None, notes: list[str]) -> None:
        metrics = {}
        if kept:
            metrics = {"kl": kept.kl_made, "agreement": kept.agreement, "tokens": float(kept.tokens)}
            if self.is_tuned:
                metrics |= {"kept": kept.share, "kl_base": kept.kl_base}
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        said = [note.format(path=out, name=self.job.name, publisher=PUBLISHER) for note in NOTES[self.job.to]]
        self.emit(ResultWritten(to=self.job.to, path=str(out), size_bytes=size, metrics=metrics, notes=[*said, *notes]))

    def _teller(self, phase: str) -> Callable[[int, int], None]:
        shown = {"at": -1}

        def tell(done: int, total: int) -> None:
            if self.requests.wants_stop():
                raise Stopped(f"stopped while the job was at: {phase}", fix="Nothing is left behind; start it again.")
            percent = 100 * done // max(1, total)
            if percent != shown["at"] or done == total:
                shown["at"] = percent
                self.emit(PhaseProgress(name=phase, done=done, total=total))

        return tell

    def _out(self, name: str) -> Path:
        out = Path(self.job.out) if self.job.out else self.folder.path / name
        refuse_full(out)
        return out

    @contextmanager
    def _meanwhile(self) -> Iterator[Path]:
        """Yield a folder for what is only needed meanwhile, on the disk of the result."""
        parent = (Path(self.job.out) if self.job.out else self.folder.path / EXPORT).parent
        parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=parent, prefix=".macft-") as folder:
            yield Path(folder)

    @contextmanager
    def _refused_early(self) -> Iterator[None]:
        """Turn a system's error into one that says what to do."""
        try:
            yield
        except OSError as error:
            raise MacftError(f"the result cannot be written ({error.strerror or error})", fix="Try --out.") from error

    def _told(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.source / "macft.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
