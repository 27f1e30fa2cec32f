"""One run from recipe to adapter: data, model, training, the result and its score.

The rule: data is read and tokenized before the model loads, so a bad row costs seconds. `Session.run` reads from top to
bottom in the order in which things happen.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macft.chat.generate import answer_batch
from macft.data.batches import Counted, Rows
from macft.data.cache import prepare_once
from macft.data.general import add_general
from macft.data.hygiene.leaks import refuse_leaks
from macft.data.pool import Workers
from macft.data.prepare import Prepared, data_facts, prepare, with_siblings
from macft.data.referenced import Mismatched
from macft.data.response_rows import ResponseRows
from macft.disk import write_atomic
from macft.errors import ModelError, Problem, RecipeError, RunError, Stopped
from macft.events import Event, PhaseProgress, RunResumed, RunStarted, Sampled, StepDone, TrainingPlanned, Warned
from macft.machine import home, read_machine, runs_folder
from macft.models.adapters import count_values
from macft.models.catalog import resolve
from macft.models.describe import describe, describe_as_loaded, tokenizer_hash
from macft.models.head import Head, find_head
from macft.models.load import load_model, load_stopping_tokenizer
from macft.models.recompute import recompute
from macft.models.stream import Stream, prepare_stream
from macft.plan import CACHE_SHARE, Plan, Verdict, plan, refusal
from macft.recipe import DataTable, KtoRecipe, PreferenceRecipe, Recipe, SupervisedRecipe, dump_recipe
from macft.run import Run
from macft.state import fold
from macft.training.checkpoint import ROWS, Checkpoints, Progress, are_finite
from macft.training.distributed import ALONE, Ranks, SharedRequests
from macft.training.loop import Ending, Job, Requests, train
from macft.training.objectives import make_objective
from macft.training.optimizers import count_steps, make_optimizer
from macft.training.reference import ReferencePass, as_reference, refer, refers_to_start
from macft.training.result import score, write_adapter, write_model
from macft.training.signs import list_signs, thinned
from macft.training.trace import trace_scales
from macft.training.trainable import make_trainable
from macft.training.vitals import Vitals
from macft.training.world import make_world, recipe_keys

TELL_SECONDS = 0.2
"""Least time between two events of a phase, its first and last apart."""
Emit = Callable[[Event], None]


class Session:
    """A run in the making.

    Args:
        recipe: What to do.
        run: A locked run folder; training goes on from its last checkpoint if it has one.
        emit: Told everything that happens.
        requests: Asked often: what the user wants done since the last call.
        meet: Brings the ranks together that train this run, once it is known that it can go on.
        accept_new_data: Whether to go on although the rows are others.
        vitals: Looks at the machine after each update.

    Raises:
        MacftError: Data, model or recipe make it impossible; nothing was trained.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        *,
        emit: Emit,
        requests: Requests,
        meet: Callable[[], Ranks] = lambda: ALONE,
        accept_new_data: bool = False,
        vitals: Vitals | None = None,
    ) -> None:
        self.vitals = vitals or Vitals()
        self.recipe, self.run_folder, self.emit, self.requests = recipe, run, emit, requests
        self.meet, self.ranks = meet, ALONE
        self.accepted = ROWS if accept_new_data else ()
        self.folder = resolve(recipe.model, home())
        self.facts = describe(self.folder)
        self.checkpoints = Checkpoints(
            run.checkpoints,
            keep=recipe.checkpoint.keep,
            world={},
            defaults=recipe_keys(type(recipe).model_construct(model="")),
            disk=run.disk,
        )

    def run(self) -> Ending:
        """Train, leave the result in the run folder, and score it."""
        latest = self.checkpoints.newest_whole()
        if damaged := [name for name in self.checkpoints.names()[:1] if name != latest]:
            fix = f"Going on from {latest or 'the start'}."
            self.emit(Warned(message=f"checkpoint {damaged[0]} is damaged", fix=fix))
        self.emit(self._started() if latest is None else RunResumed(step=self.checkpoints.progress_of(latest).step))
        for warned in self.vitals.start() if latest is None else ():
            self.emit(warned)
        self._refuse_untrainable()
        self.ranks = self.meet()
        self.tokenizer = load_stopping_tokenizer(self.folder)
        data = self._prepare(self._read_data(is_new=latest is None))
        self.checkpoints.world = make_world(self.recipe, self.folder, data)
        self._require_same_world()
        changed = self.checkpoints.check_world(latest, accepted=self.accepted) if latest is not None else []
        planned = self._make_plan(data)
        self.emit(PhaseProgress(name="load"))
        if mx.default_device() == mx.gpu:  # shapes vary from batch to batch, and MLX would keep a buffer of each
            limit = read_machine().working_set_bytes
            mx.set_memory_limit(limit)
            mx.set_cache_limit(int(limit * CACHE_SHARE))
        model, result_config = make_trainable(self.recipe, self.folder, runs_folder())
        job = self._make_job(model, data, planned)
        progress = self._take_up(latest, job)
        if changed:  # what was best on other rows says nothing on these
            progress = Progress(step=progress.step)
        self.emit(self._planned(job))
        ending = self._drive(train(job, progress))
        if not self.ranks.leads:
            return ending
        if ending.progress.step > 0:
            self._write_result(model, result_config, self._choose(model, ending.progress))
        if ending.status == "done" and self.recipe.evaluate.test_rows and data.test:
            self._score(model, data)
        return ending

    def _refuse_untrainable(self) -> None:
        if not self.facts.trainable:
            raise ModelError(
                f"{self.facts.name} cannot be trained: {self.facts.why_not}", fix="`macft models` lists those that can."
            )
        if self.facts.why_not:
            self.emit(Warned(message=self.facts.why_not))
        if not self.recipe.data.train:
            raise RecipeError([Problem("data.train", "is required: files or folders of rows to learn from")])

    @property
    def _limit(self) -> int:
        """Most tokens of a row."""
        return min(self.recipe.max_seq_length, self.facts.context or self.recipe.max_seq_length)

    def _read_data(self, *, is_new: bool) -> DataTable:
        """Return the recipe's rows with the general ones it asks for; a new run refuses rows that are on two sides."""
        table = with_siblings(self.recipe.data)
        if is_new:
            refuse_leaks(table)
        found = add_general(table, home() / "cache" / "general")
        if found.rows < found.wanted:
            message = f"data.keep_general asks for {found.wanted:,} general rows, and there are {found.rows:,}"
            self.emit(Warned(message=message, fix="data.general names more; none is trained on twice."))
        return found.data

    def _prepare(self, table: DataTable) -> Prepared:
        recipe = self.recipe
        settings = (recipe.method, self._limit, self.facts.vocab_size, recipe.evaluate, tokenizer_hash(self.folder))
        data = prepare_once(
            home() / "cache" / "rows",
            table,
            settings,
            lambda: prepare(
                table,
                self.tokenizer,
                method=recipe.method,
                max_seq_length=self._limit,
                vocab_size=self.facts.vocab_size,
                evaluate=recipe.evaluate,
                progress=self._teller("tokenize"),
                workers=Workers(partial(load_stopping_tokenizer, self.folder)),
            ),
        )
        for message, fix in data.report.list_warnings():
            self.emit(Warned(message=message, fix=fix))
        for note, rows in data.report.notes.items():
            self.emit(Warned(message=f"{note} (rows: {rows:,})"))
        return data

    def _make_job(self, model: nn.Module, data: Prepared, planned: Plan) -> Job:
        recipe = self.recipe
        head = find_head(model)
        sets: list[Counted] = [data.train, data.valid]
        if isinstance(recipe, KtoRecipe):
            sets += [Mismatched(rows, self._limit) for rows in sets if isinstance(rows, ResponseRows)]
        stream = prepare_stream(model, longest=max(int(rows.longest.max(initial=0)) for rows in sets))
        if isinstance(recipe, SupervisedRecipe) and recipe.neftune_alpha and not head.takes_embeddings:
            message = f"the family {self.facts.family} does not take noisy embeddings; set 0"
            raise RecipeError([Problem("neftune_alpha", message)])
        divisor = self.run_folder.state().micro_batch_divisor
        tokens = max(1, planned.micro_batch_tokens // divisor)
        if isinstance(data.train, ResponseRows) and not stream.layers:
            tokens //= data.train.responses  # the prompt lies in each of the padded rows
        train_rows, valid_rows = self._refer(model, head, stream, data, tokens)
        if (level := recompute(model, planned.recompute, stream)) != planned.recompute:
            message = f"the family {self.facts.family} cannot recompute less than whole layers"
            self.emit(Warned(message=message, fix=f'That is what the run does: recompute = "{level}".'))
        return Job(
            recipe=recipe,
            model=model,
            objective=make_objective(recipe, head, stream),
            optimizer=make_optimizer(recipe.optimizer, recipe.learning_rate),
            train_rows=train_rows,
            valid_rows=valid_rows,
            micro_batch_tokens=tokens,
            micro_batch_divisor=divisor,
            compiled=recipe.compile,
            checkpoints=self.checkpoints,
            requests=SharedRequests(self.requests, self.ranks),
            sample=self._sampler(model, data) if self.ranks.leads else lambda _: iter(()),
            ranks=self.ranks,
        )

    def _take_up(self, latest: str | None, job: Job) -> Progress:
        """Return where training stands, with rank 0's weights and optimizer state in place on every rank."""
        progress = Progress()
        if resumed := self.ranks.from_leader(latest is not None):
            job.optimizer.init(job.model.trainable_parameters())
        if latest is not None:
            progress = self.checkpoints.load(latest, job.model, job.optimizer)
        if self.ranks.size > 1:
            job.model.update(self.ranks.copy_leader(job.model.trainable_parameters()))
            if resumed:
                job.optimizer.state = self.ranks.copy_leader(job.optimizer.state)
        return Progress(**self.ranks.from_leader(asdict(progress)))

    def _refer(self, model: nn.Module, head: Head, stream: Stream, data: Prepared, tokens: int) -> tuple[Rows, Rows]:
        """Return the training and validation rows with what the reference says of them; the model is at its start."""
        recipe = self.recipe
        stands_on = {
            "base": self.checkpoints.world["base model"],
            "template": self.checkpoints.world["chat template"],
            "quantize": (recipe.quantize, recipe.quantize_group_size),
            "dtype": (recipe.compute_dtype, recipe.adapter_dtype, recipe.adapter == "full"),
            "device": mx.default_device(),
            "versions": [version(name) for name in ("macft", "mlx", "mlx-lm")],
        }
        if refers_to_start(recipe):
            stands_on["adapter"] = self.checkpoints.world["start adapter"]
        with as_reference(model, recipe):
            scorer = ReferencePass(
                model, head, stream, tokens=tokens, folder=home() / "cache" / "reference", stands_on=stands_on
            )
            sets = [data.train, data.valid]
            train, valid = refer(recipe, sets, scorer, self._teller("reference"), limit=self._limit)
        return train, valid

    def _sampler(self, model: nn.Module, data: Prepared) -> Callable[[int], Iterator[Sampled]]:
        limit = self.recipe.evaluate.max_tokens

        def sample(step: int) -> Iterator[Sampled]:
            model.eval()
            prompts = [question.ids for question in data.samples]
            answers = answer_batch(model, self.tokenizer, prompts, max_tokens=limit)
            model.train()
            for index, (asked, answer) in enumerate(zip(data.samples, answers, strict=True)):
                yield Sampled(step=step, index=index, prompt=asked.text, text=answer.text, reference=asked.reference)

        return sample

    def _make_plan(self, data: Prepared) -> Plan:
        """Plan with the rows as they are, keep the plan in the run's folder, and say when it does not fit."""
        facts = describe_as_loaded(self.folder, quantize=self.recipe.quantize)
        known = self.recipe, facts, data_facts(data), read_machine()
        made = plan(*known)
        if made.verdict != Verdict.FITS or made.recompute not in {"none", self.recipe.recompute}:
            made = plan(*known, scales=trace_scales(*known))  # it is close: what is counted may be off by a tenth
        if self.ranks.leads:
            plan_json = json.dumps({"schema": 1, **asdict(made)}, indent=2).encode()
            with suppress(OSError):  # a full disk: to train, nobody needs it
                write_atomic(self.run_folder.path / "plan.json", plan_json, self.run_folder.disk)
        if made.verdict == Verdict.DOES_NOT_FIT:
            error = refusal(made)
            self.emit(Warned(message=error.message, fix="It may run out of memory."))
        return made

    def _require_same_world(self) -> None:
        """Refuse ranks that would train something else, or in another order of evaluations."""
        facts = self.checkpoints.world | _versions() | {"evaluate": str(self.recipe.evaluate)}
        del facts["start_from"]  # a path, which may differ; its weights come from rank 0
        self.ranks.require_same(facts)

    def _started(self) -> RunStarted:
        return RunStarted(
            method=self.recipe.method,
            adapter=self.recipe.adapter,
            model=self.facts.name,
            quantize=self.recipe.quantize,
            versions=_versions(),
        )

    def _planned(self, job: Job) -> TrainingPlanned:
        head, stream = job.objective.head, job.objective.stream
        return TrainingPlanned(
            total_steps=count_steps(self.recipe, len(job.train_rows)),
            steps_per_epoch=-(-len(job.train_rows) // self.recipe.batch_size),
            train_rows=len(job.train_rows),
            valid_rows=len(job.valid_rows),
            trainable_parameters=count_values(job.model.trainable_parameters())[0],
            parameters=self.facts.parameters,
            micro_batch_tokens=job.micro_batch_tokens,
            device="gpu" if mx.default_device() == mx.gpu else "cpu",
            head="supervised rows" if head.projection else "all rows",
            rows="stream" if stream.layers else f"padded: {stream.why_not}",
            ranks=self.ranks.size,
        )

    def _drive(self, events: Generator[Event, None, Ending]) -> Ending:
        state = self.run_folder.state()
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                ending: Ending = end.value
                return ending
            self.emit(event)
            if isinstance(event, StepDone):
                for warned in self.vitals.look(event):
                    self.emit(warned)
            if isinstance(self.recipe, PreferenceRecipe):
                state = thinned(fold([event], state))
                for sign in list_signs(self.recipe, state):
                    self.emit(sign)
                    state = fold([sign], state)

    def _teller(self, phase: str) -> Callable[[int, int], None]:
        told_at, told, began = 0.0, -1, time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal told_at, told
            if done != told and (done in {0, total} or time.monotonic() - told_at >= TELL_SECONDS):
                told_at, told = time.monotonic(), done
                rate = done / max(TELL_SECONDS, told_at - began)
                left = (total - done) / rate if rate and total else None
                self.emit(PhaseProgress(name=phase, done=done, total=total, per_second=rate, seconds_left=left))
            self.ranks.raise_if_lost()
            if self.requests.wants_stop():
                raise Stopped(f"stopped while the run was at: {phase}", fix="`macft resume` goes on with it.")

        return tell

    def _choose(self, model: nn.Module, progress: Progress) -> int:
        """Put what the result shall be into the model, and return the step that it is from."""
        if (best := self.checkpoints.best_of(progress)) is not None:
            return self.checkpoints.load(best, model).step
        message = fix = ""
        if progress.best_step > 0:
            message, fix = f"the best checkpoint, of step {progress.best_step}, is not there", "Look at its disk."
        elif progress.looked_step > 0:
            message, fix = "no evaluation was better than the one before training", "Try a lower learning_rate."
        if message:
            self.emit(Warned(message=f"{message}: the last weights are kept", fix=fix, step=progress.step))
        if are_finite(model.trainable_parameters()):
            return progress.step
        if (last := self.checkpoints.newest_whole()) is None:
            raise RunError("the weights are not finite, and there is no checkpoint", fix="Try a lower learning_rate.")
        return self.checkpoints.load(last, model).step

    def _write_result(self, model: nn.Module, config: dict[str, Any], step: int) -> Path:
        world = self.checkpoints.world
        provenance = {
            "version": version("macft"),
            "base_model": self.facts.name,
            "base_fingerprint": world["base model"],
            "template_hash": world["chat template"],
            "recipe_hash": sha256(dump_recipe(self.recipe).encode()).hexdigest(),
            "data_hash": world["training rows"],
            "quantize": self.recipe.quantize,
            "quantize_group_size": self.recipe.quantize_group_size,
            "method": self.recipe.method,
            "step": step,
            "enable_thinking": self.recipe.data.enable_thinking,
        }
        if self.recipe.adapter == "full":
            return write_model(self.run_folder, model, self.folder, config, provenance)
        return write_adapter(self.run_folder, model, config, provenance)

    def _score(self, model: nn.Module, data: Prepared) -> None:
        full = self.recipe.adapter == "full"
        base = load_model(self.folder, compute_dtype=self.recipe.compute_dtype)[0] if full else None
        limit, tell = self.recipe.evaluate.max_tokens, self._teller("answer")
        self.emit(score(model, base, self.tokenizer, data.test, max_tokens=limit, progress=tell))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("macft", "mlx", "mlx-lm", "transformers")}
