"""One run from recipe to adapter: data, model, training, the result and its score.

The rule: data is read and tokenized before the model loads, so a bad row costs seconds. `run_session` reads from top to
bottom in the order in which things happen.
"""

import fnmatch
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.generate import answer_batch
from macft.data.prepare import Prepared, prepare
from macft.data.questions import Question, ask, questions_from
from macft.errors import ModelError, Problem, RecipeError, Stopped
from macft.events import Event, PhaseProgress, RunResumed, RunStarted, Sampled, TrainingPlanned, Warned
from macft.machine import home, read_machine, runs_folder
from macft.memory import activation_bytes, adapter_bytes, largest_micro_batch, logit_bytes
from macft.models import adapters
from macft.models.catalog import resolve
from macft.models.describe import ModelFacts, describe, fingerprint, template_hash
from macft.models.head import find_head
from macft.models.load import load_model, load_tokenizer
from macft.recipe import Recipe, dump_recipe
from macft.run import Run, find_adapter
from macft.training.checkpoint import BEST, LATEST, Checkpoints, Progress
from macft.training.loop import Ending, Job, train
from macft.training.objectives import Supervised
from macft.training.optimizers import count_steps, make_optimizer
from macft.training.result import score, write_adapter, write_model

MEMORY_SHARE = 0.5
"""Share of the memory left beside weights and adapter that one micro-batch may take."""
FREE_TO_CHANGE = ("checkpoint", "evaluate", "data", "micro_batch_size", "compile")
"""Recipe keys that may differ when a run is resumed; the rows have fingerprints of their own."""

Emit = Callable[[Event], None]


def run_session(recipe: Recipe, run: Run, *, emit: Emit, requests: Callable[[], list[str]]) -> Ending:
    """Train as the recipe says and leave the result in the run folder; goes on from the last checkpoint if there is one.

    Args:
        recipe: What to do.
        run: A locked run folder.
        emit: Told everything that happens.
        requests: Asked often: what the user wants done since the last call.

    Raises:
        MacftError: Data, model or recipe make it impossible; nothing was trained.
    """
    checkpoints = Checkpoints(run.checkpoints, keep=recipe.checkpoint.keep, world={})
    latest = checkpoints.name_of(LATEST)
    emit(_started(recipe) if latest is None else RunResumed(step=checkpoints.read_state(latest)["progress"]["step"]))

    def tell(name: str) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            emit(PhaseProgress(name=name, done=done, total=total))
            if "stop" in requests():
                raise Stopped("stopped before training began", fix="`macft resume` starts it again.")

        return progress

    folder = resolve(recipe.model, home())
    facts = describe(folder)
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")
    if facts.why_not:
        emit(Warned(message=facts.why_not))
    tokenizer = load_tokenizer(folder)
    data = _prepare(recipe, tokenizer, facts, tell("tokenize"))
    for note in data.report.notes:
        emit(Warned(message=note))
    emit(PhaseProgress(name="load"))
    model, adapter_config = _load(recipe, folder, emit)
    checkpoints.world = _world(recipe, folder, data)
    job = _make_job(recipe, model, tokenizer, facts, data, checkpoints, requests)
    progress = Progress()
    if latest is not None:
        checkpoints.check_world(latest)
        job.optimizer.init(model.trainable_parameters())
        progress = checkpoints.load(latest, model, job.optimizer)
    emit(_planned(recipe, model, data, job))
    ending = _drive(train(job, progress), emit)
    if ending.progress.step:
        if (best := checkpoints.name_of(BEST)) is not None:
            checkpoints.load(best, model)
        _write_result(run, recipe, model, folder, adapter_config, checkpoints.world, ending)
    if ending.status == "done" and recipe.evaluate.test_rows and data.test:
        questions = _questions(recipe, data.test, tokenizer, recipe.evaluate.test_rows)
        base = load_model(folder, compute_dtype=recipe.compute_dtype)[0] if recipe.adapter == "full" else None
        limit = recipe.evaluate.max_tokens
        emit(score(model, base, tokenizer, questions, max_tokens=limit, progress=tell("answer")))
    return ending


def _prepare(
    recipe: Recipe, tokenizer: TokenizerWrapper, facts: ModelFacts, progress: Callable[[int, int], None]
) -> Prepared:
    if not recipe.data.train:
        raise RecipeError([Problem("data.train", "is required: files or folders of rows to learn from")])
    longest = min(recipe.max_seq_length, facts.context or recipe.max_seq_length)
    return prepare(
        recipe.data,
        tokenizer,
        method=recipe.method,
        max_seq_length=longest,
        vocab_size=facts.vocab_size,
        progress=progress,
    )


def _load(recipe: Recipe, folder: Path, emit: Emit) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model and make the recipe's part of it trainable."""
    full = recipe.adapter == "full"
    # Updates of full fine-tuning are smaller than bfloat16 can hold beside the weights.
    dtype = "float32" if full and recipe.compute_dtype == "auto" else recipe.compute_dtype
    model, config = load_model(
        folder, quantize=recipe.quantize, group_size=recipe.quantize_group_size, compute_dtype=dtype
    )
    if full:
        if any(isinstance(module, nn.QuantizedLinear) for module in model.modules()):
            raise RecipeError([Problem("adapter", "a quantized model cannot be trained in full; use lora or dora")])
        _unfreeze(model, recipe.freeze)
        return model, config
    if recipe.start_from is None:
        return model, adapters.attach(model, recipe.lora, kind=recipe.adapter, seed=recipe.seed)
    source = find_adapter(recipe.start_from, runs_folder())
    config = adapters.load_adapter(model, source, base_fingerprint=fingerprint(folder))
    adapters.set_dropout(model, recipe.lora.dropout)
    taken = config["lora_parameters"]
    if taken["rank"] != recipe.lora.rank:
        emit(Warned(message=f"rank {taken['rank']} is taken from the adapter in start_from, not lora.rank"))
    return model, config


def _unfreeze(model: nn.Module, patterns: list[str]) -> None:
    model.unfreeze()
    unused = set(patterns)
    for path, module in model.named_modules():
        for name, value in module.items():
            full_name = f"{path}.{name}".lstrip(".")
            matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(full_name, pattern)]
            if matching and isinstance(value, mx.array):
                module.freeze(recurse=False, keys=[name])
                unused -= set(matching)
    if unused:
        raise RecipeError([Problem("freeze", f"{pattern!r} matches no parameter") for pattern in sorted(unused)])
    if not tree_flatten(model.trainable_parameters()):
        raise RecipeError([Problem("freeze", "leaves nothing to train")])


def _make_job(
    recipe: Recipe,
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    facts: ModelFacts,
    data: Prepared,
    checkpoints: Checkpoints,
    requests: Callable[[], list[str]],
) -> Job:
    head = find_head(model)
    if recipe.neftune_alpha and not head.takes_embeddings:
        raise RecipeError(
            [Problem("neftune_alpha", f"the family {facts.family} does not take noisy embeddings; set 0")]
        )
    if recipe.recompute == "layer":
        adapters.recompute_layers(model)
    samples = [ask(text, tokenizer, enable_thinking=recipe.data.enable_thinking) for text in recipe.evaluate.prompts]
    samples = samples or _questions(recipe, data.valid_examples, tokenizer, recipe.evaluate.samples)

    def sample(step: int) -> Iterator[Sampled]:
        was_training = model.training
        model.eval()
        limit = recipe.evaluate.max_tokens
        answers = answer_batch(model, tokenizer, [question.ids for question in samples], max_tokens=limit)
        model.train(was_training)
        for index, (question, answer) in enumerate(zip(samples, answers, strict=True)):
            yield Sampled(step=step, index=index, prompt=question.text, text=answer.text, reference=question.reference)

    return Job(
        recipe=recipe,
        model=model,
        objective=Supervised(head, neftune_alpha=recipe.neftune_alpha),
        optimizer=make_optimizer(recipe.optimizer, recipe.learning_rate),
        train_rows=data.train,
        valid_rows=data.valid,
        micro_batch_size=recipe.micro_batch_size or _micro_batch(recipe, model, facts, data),
        compiled=mx.default_device() == mx.gpu if recipe.compile == "auto" else recipe.compile,
        checkpoints=checkpoints,
        requests=requests,
        sample=sample,
    )


def _questions(recipe: Recipe, examples: Any, tokenizer: TokenizerWrapper, count: int) -> list[Question]:
    found = questions_from(examples, tokenizer, enable_thinking=recipe.data.enable_thinking)
    return list(islice(found, count))


def _micro_batch(recipe: Recipe, model: nn.Module, facts: ModelFacts, data: Prepared) -> int:
    """Return how many of the longest rows fit beside the weights."""
    trainable = sum(value.size for _, value in tree_flatten(model.trainable_parameters()))
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    left = read_machine().working_set_bytes * 0.75 - weights - adapter_bytes(trainable)
    longest = int(data.train.lengths.max())
    shape = {"width": facts.hidden_size, "inner": facts.intermediate_size, "kv_width": facts.kv_heads * facts.head_dim}
    value_bytes = 4 if mx.default_device() == mx.cpu else 2
    recomputed = recipe.recompute == "layer"
    a_row = activation_bytes(
        longest, layers=facts.layers, value_bytes=value_bytes, recomputed=recomputed, **shape
    ) + logit_bytes(longest, vocabulary=facts.vocab_size)
    return largest_micro_batch(a_row, int(left * MEMORY_SHARE), batch_size=recipe.batch_size)


def _world(recipe: Recipe, folder: Path, data: Prepared) -> dict[str, str]:
    """Return what a checkpoint stands on, by name."""
    keys = {
        name: str(value)
        for name, value in recipe.model_dump(mode="json").items()
        if name not in FREE_TO_CHANGE and name != "model"
    }
    return keys | {
        "base model": fingerprint(folder),
        "chat template": template_hash(folder),
        "training rows": data.train.fingerprint,
        "validation rows": data.valid.fingerprint,
    }


def _started(recipe: Recipe) -> RunStarted:
    versions = {name: version(name) for name in ("macft", "mlx", "mlx-lm", "transformers")}
    return RunStarted(
        method=recipe.method,
        adapter=recipe.adapter,
        model=Path(recipe.model).name if recipe.model.startswith("/") else recipe.model,
        quantize=recipe.quantize,
        versions=versions,
    )


def _planned(recipe: Recipe, model: nn.Module, data: Prepared, job: Job) -> TrainingPlanned:
    return TrainingPlanned(
        total_steps=count_steps(recipe, len(data.train)),
        steps_per_epoch=-(-len(data.train) // recipe.batch_size),
        train_rows=len(data.train),
        valid_rows=len(data.valid),
        test_rows=len(data.test),
        trainable_parameters=sum(value.size for _, value in tree_flatten(model.trainable_parameters())),
        parameters=sum(value.size for _, value in tree_flatten(model.parameters())),
        micro_batch_size=job.micro_batch_size,
        device="gpu" if mx.default_device() == mx.gpu else "cpu",
        head="supervised rows" if job.objective.head.project else "all rows",
    )


def _drive(events: Any, emit: Emit) -> Ending:
    while True:
        try:
            emit(next(events))
        except StopIteration as end:
            ending: Ending = end.value
            return ending


def _write_result(
    run: Run,
    recipe: Recipe,
    model: nn.Module,
    folder: Path,
    config: dict[str, Any],
    world: dict[str, str],
    ending: Ending,
) -> None:
    provenance = {
        "version": version("macft"),
        "base_model": Path(recipe.model).name if recipe.model.startswith("/") else recipe.model,
        "base_fingerprint": world["base model"],
        "template_hash": world["chat template"],
        "recipe_hash": sha256(dump_recipe(recipe).encode()).hexdigest(),
        "data_hash": world["training rows"],
        "method": recipe.method,
        "step": ending.progress.best_step or ending.progress.step,
        "enable_thinking": recipe.data.enable_thinking,
    }
    if recipe.adapter == "full":
        write_model(run, model, folder, config, provenance)
    else:
        write_adapter(run, model, config, provenance)
