"""Make the golden numbers of preference tuning with TRL's own trainers.

Made with Python 3.11, torch 2.13.0 (CPU, one thread), transformers 5.23.0, peft 0.21.2, trl 1.10.0 and numpy 2.4.6, in
fp64 with eager attention. `README.md` beside this file says how to run it again.

The rule: no formula is written here. A trainer is built as a user would, with a fresh LoRA adapter that is then given
the `llama` case's weights (so the reference is the base model), its own collator makes the batch and its own
`compute_loss` the loss; the metrics are what it would log. The weights are fp32's, but all that is computed is in fp64,
also where transformers asks for fp32, so that a comparison shows the rounding of the other side alone: a difference of
two sums of 300 nats is good to 3e-5 in fp32. Two of its answers are taken one response at a time:

- TRL 1.10 dropped label smoothing from DPO's `sigmoid`. Its `aot_unpaired` has it, and on a batch of one pair, where
  there is nothing to sort, is conservative DPO: `cdpo` is the mean of such batches.
- KTO's log-probabilities of single responses are the metrics of batches of one.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.golden.make_sft import ALPHA, HERE, RANK, TARGETS, adapter_tensors, make_model, to_mlx, with_adapter
from tests.golden.preference import DPO_CASES, FOLDER, KTO_CASES, LABELS, REFERENCE_FREE_CASES, load_rows

NAME = "llama"
ROWS = load_rows()
PAIRS = len(ROWS)
ARGUMENTS: dict[str, Any] = {
    "per_device_train_batch_size": PAIRS,
    "max_length": 512,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
}
REPORTED = ("rewards/", "logps/", "nll_loss", "log_odds", "kl")
Arrays = dict[str, np.ndarray]
Inputs = dict[str, torch.Tensor]


def make_trainer(kind: type, config: type, rows: Iterable[dict[str, Any]], **options: Any) -> Any:
    """Build a trainer with the case's adapter in place and the base model as its reference."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE / NAME)
    trainer = kind(
        model=make_model(NAME),
        args=config(output_dir=tempfile.mkdtemp(), **ARGUMENTS | options),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS), bias="none", task_type="CAUSAL_LM"
        ),
    )
    given = with_adapter(NAME).state_dict()
    missing = trainer.model.load_state_dict(given, strict=False)
    if missing.missing_keys or missing.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {missing}")
    compute_in_float64(trainer.model)
    trainer.model.train()
    return trainer


def compute_in_float64(model: torch.nn.Module) -> None:
    """Take the rounding of fp32 out of a model: of its weights' products, and of RoPE's angles."""
    model.double()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            exponents = torch.arange(0, 2 * len(module.inv_freq), 2, dtype=torch.float64) / (2 * len(module.inv_freq))
            module.inv_freq = module.config.rope_parameters["rope_theta"] ** -exponents


@contextmanager
def float64_for_float32() -> Iterator[None]:
    """Give fp64 to code that asks for fp32 by name, as transformers' norms, softmax and RoPE do."""
    own, own_method = torch.float32, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32 = torch.float = own
        torch.Tensor.float = own_method


def batch_of(trainer: Any, rows: Iterable[int]) -> Inputs:
    """Collate rows of the trainer's own data set as it would."""
    return trainer.data_collator([trainer.train_dataset[row] for row in rows])


@float64_for_float32()
def measured(trainer: Any, inputs: Inputs) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss with its graph, and what the trainer would log."""
    if isinstance(trainer, DPOTrainer | KTOTrainer):
        trainer._metrics["train"].clear()
        loss = trainer.compute_loss(trainer.model, inputs)
        return loss, {key: values[-1] for key, values in trainer._metrics["train"].items()}
    return trainer.get_batch_loss_metrics(trainer.model, inputs)


@torch.no_grad()
@float64_for_float32()
def sums_beside(trainer: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Return the reference's log-probabilities, and of KTO the mismatched responses'."""
    reference = trainer.compute_ref_log_probs(trainer.model, inputs)
    if isinstance(trainer, DPOTrainer):
        return dict(zip(("chosen", "rejected"), reference, strict=True))
    of_policy = trainer._compute_kl_logps(trainer.model, inputs)
    return {"reference": reference[0], "kl_reference": reference[1], "kl_policy": of_policy}


def case(name: str, trainer: Any, batches: list[Inputs]) -> Arrays:
    """Loss, metrics and gradients (kept in float32), each the mean over the batches."""
    trainer.model.zero_grad()
    losses, logged = zip(*(measured(trainer, inputs) for inputs in batches), strict=True)
    loss = torch.stack(list(losses)).mean()
    loss.backward()
    gradients = {key: tensor.grad.float() for key, tensor in adapter_tensors(trainer.model).items()}
    metrics = {key: np.float64(np.mean([one[key] for one in logged])) for key in logged[0] if key.startswith(REPORTED)}
    print(f"{name:14} loss {loss.item():.6f}  " + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return (
        {f"{name}/loss": loss.detach().numpy()}
        | {f"{name}/metrics/{key}": value for key, value in metrics.items()}
        | to_mlx(gradients, f"{name}/gradients")
    )


def dpo_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Translate a case's options to TRL's."""
    arguments: dict[str, Any] = {"loss_type": [options["loss"]], "beta": options["beta"]}
    arguments |= {key: options[key] for key in ("label_smoothing", "ld_alpha") if key in options}
    if options["loss"] == "sigmoid" and "label_smoothing" in options:
        arguments["loss_type"] = ["aot_unpaired"]
    if "sft_weight" in options:
        arguments |= {"loss_type": [options["loss"], "sft"], "loss_weights": [1.0, options["sft_weight"]]}
    return arguments


def dpo_numbers() -> Arrays:
    """Every DPO case, the token ids and the reference's log-probabilities."""
    arrays: Arrays = {}
    for name, options in DPO_CASES.items():
        trainer = make_trainer(DPOTrainer, DPOConfig, ROWS, **dpo_arguments(options))
        alone = trainer.loss_types == ["aot_unpaired"]
        batches = [batch_of(trainer, rows) for rows in ([[row] for row in range(PAIRS)] if alone else [range(PAIRS)])]
        arrays |= case(name, trainer, batches)
        if name in ("sigmoid", "sigmoid_ld"):
            prefix = "logprobs/ld/" if name == "sigmoid_ld" else "logprobs/"
            whole = batch_of(trainer, range(PAIRS))
            arrays |= named(f"{prefix}reference/", sums_beside(trainer, whole))
            single = [measured(trainer, batch_of(trainer, [row]))[1] for row in range(PAIRS)]
            sides = ("chosen", "rejected")
            arrays |= named(f"{prefix}policy/", {side: [one[f"logps/{side}"] for one in single] for side in sides})
        for row, example in enumerate(trainer.train_dataset):
            for side in ("prompt", "chosen", "rejected"):
                arrays[f"ids/{side}/{row}"] = np.array(example[f"{side}_ids"], dtype=np.int32)
    return arrays


def named(prefix: str, values: Mapping[str, Any]) -> Arrays:
    """Name arrays, float64."""
    return {f"{prefix}{key}": np.asarray(value, dtype=np.float64) for key, value in values.items()}


def reference_free_numbers() -> Arrays:
    """SimPO, ORPO and CPO."""
    arrays: Arrays = {}
    for name, options in REFERENCE_FREE_CASES.items():
        if options["method"] == "orpo":
            trainer = make_trainer(ORPOTrainer, ORPOConfig, ROWS, beta=options["beta"])
        else:
            trainer = make_trainer(
                CPOTrainer,
                CPOConfig,
                ROWS,
                loss_type={"simpo": "simpo", "cpo": "sigmoid"}[options["method"]],
                beta=options["beta"],
                cpo_alpha=options["alpha"],
                simpo_gamma=options.get("gamma", 0.5),
                label_smoothing=options.get("label_smoothing", 0.0),
            )
        arrays |= case(name, trainer, [batch_of(trainer, range(PAIRS))])
    return arrays


def kto_numbers() -> Arrays:
    """KTO, on the chosen response of some pairs and the rejected one of others."""
    arrays: Arrays = {}
    for name, options in KTO_CASES.items():
        rows = [
            {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
            for row, label in zip(ROWS, LABELS, strict=True)
        ]
        trainer = make_trainer(KTOTrainer, KTOConfig, rows, **options)
        whole = batch_of(trainer, range(PAIRS))
        arrays |= case(name, trainer, [whole])
        arrays |= named("logprobs/kto/", sums_beside(trainer, whole))
        single = [measured(trainer, batch_of(trainer, [row]))[1] for row in range(PAIRS)]
        policy = [one.get("logps/chosen", one.get("logps/rejected")) for one in single]
        arrays |= named("logprobs/kto/", {"policy": policy})
    return arrays


def main() -> None:
    """Write every number."""
    torch.set_num_threads(1)
    arrays: Arrays = {}
    makers: tuple[Callable[[], Arrays], ...] = (dpo_numbers, reference_free_numbers, kto_numbers)
    for make in makers:
        arrays |= make()
    np.savez_compressed(FOLDER / "numbers.npz", **arrays)


if __name__ == "__main__":
    main()
