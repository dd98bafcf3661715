"""Everything the loop needs, assembled: model, optimizer, data, class weights, checkpoints."""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.long_texts import pool
from train_loop.command_line import DECISION_FLAGS, LENGTH_FLAGS, read_config, write_yaml
from train_loop.config import CONFIG_FILE, ClassWeights, TrainConfig
from train_loop.defaults import num_steps_of
from train_loop.distillation.student import as_student
from train_loop.machine.device import precision_name, shard_by_layer
from train_loop.machine.processes import on_main_process
from train_loop.model.masks import take_masks_as_given
from train_loop.model.padding import fit_to_tokenizer
from train_loop.model.weights import HeadStart, Report, freeze_unused_parameters, load_model
from train_loop.rows.data import Data, class_counts
from train_loop.rows.split import SoftTargets, Split
from train_loop.run.checkpoint import CheckpointStore, Identity, TrainState
from train_loop.run.directory import RunDirectory
from train_loop.run.progress import Progress
from train_loop.steps.dropout import MaskSource, replace_dropout
from train_loop.steps.feed import Collator
from train_loop.steps.graphs import WIDTH_MULTIPLE, CudaCapture, PassGraphs, is_default
from train_loop.steps.loss import class_weights, positive_weights, row_weights
from train_loop.steps.optimizer import build_optimizer, num_warmup_updates
from train_loop.steps.plan import BatchPlan
from train_loop.steps.scoring import evaluate_logits, predict_logits

STEPS_OF_SHORT_RUN = 500
"""Steps below which more epochs helped, on 462 and on 3,000 rows (docs/RESULTS.md)."""


@dataclasses.dataclass(kw_only=True)
class Training:
    """Everything the loop needs; assembled by `build_training`."""

    config: TrainConfig
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    tokenizer: PreTrainedTokenizerFast
    data: Data
    class_weights: Tensor  # [C], on the device, in the type of the loss
    checkpoints: CheckpointStore
    progress: Progress
    num_steps: int
    dropout_masks: MaskSource | None = None  # source of dropout masks on a CPU; None if torch draws them
    graphs: PassGraphs | None = None  # recorded passes, on a GPU
    pad_to_multiple_of: int = 1
    omit_masks: bool = False  # whether micro-batches without padding have no attention mask
    max_tokens_per_forward: int | None = None
    """Most padded tokens of one forward pass, once memory ran out; not saved, as a resumed run may have more."""
    sizes_that_fit: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    """(rows, tokens of a row) of micro-batches that fitted into memory on every process along with AdamW's state."""
    after_evaluation: Callable[[float, float], None] | None = None
    """Called after each evaluation with the share of the steps that are done and the score (higher is better); what it
    raises ends the loop."""

    def __post_init__(self) -> None:
        self.learned = self.data.learned
        self.collate = self.collator(self.learned, self.data.teacher)
        weights = self.class_weights.cpu().double().numpy()  # MPS has no float64
        self.row_weights = row_weights(weights, self.learned.labels)  # [N]

    def collator(self, split: Split, teacher: SoftTargets | None = None) -> Collator:
        """Return the collator of a split, with standardized numbers."""
        if self.data.problem_type == "regression":
            split = dataclasses.replace(split, labels=(split.labels - self.data.offset) / self.data.scale)
        return Collator(
            split,
            self.tokenizer,
            self.data.max_length,
            self.pad_to_multiple_of,
            pinned=self.accelerator.device.type == "cuda",
            omit_masks=self.omit_masks,
            teacher=teacher,
        )

    def zero_grad(self) -> None:
        """Drop the gradients; a recorded pass needs them where they are."""
        self.optimizer.zero_grad(set_to_none=self.graphs is None)

    def plan(self, epoch: int) -> BatchPlan:
        """Return the optimizer steps of an epoch."""
        return BatchPlan(
            self.learned.lengths,
            self.row_weights,
            batch_size=self.config.batch_size,
            num_processes=self.accelerator.num_processes,
            grouping=self.config.length_grouping,
            seed=self.config.seed,
            epoch=epoch,
            widths=self.collate.widths,
            num_windows=self.collate.num_windows,
            window_lengths=self.collate.lengths,
            num_micro_batches=self.config.gradient_accumulation_steps,
            max_tokens=self.config.max_tokens_per_forward,
        )

    def evaluate(self, split: Split) -> dict[str, float]:
        """Return the metrics of a split with the current weights; call on all processes."""
        logits = pool(self.predict(split), split.num_windows, self.config.long_text_rule.pooling)
        return evaluate_logits(logits, split.labels, self.data.offset, self.data.scale)

    def predict(self, split: Split) -> NDArray[np.float32]:
        """Return the logits of a split's windows [M, C] with the current weights; call on all processes."""
        return predict_logits(
            self.accelerator,
            self.model,
            len(self.data.labels),
            self.collator(split),
            self.config.eval_max_tokens_per_forward,
        )


def _loss_weights(kind: ClassWeights, data: Data) -> tuple[NDArray[np.float64], HeadStart]:
    """Return the weights of the classes, or of the rows with each label [C], and how the head begins."""
    start = HeadStart(problem_type=data.problem_type, offset=data.offset, scale=data.scale)
    if data.problem_type == "regression":
        return np.ones(1), start
    counts, num_rows = class_counts(data.train, data.labels), len(data.train)
    if data.problem_type == "single_label_classification":
        return class_weights(kind, counts, data.labels), start
    weights = positive_weights(kind, counts, data.labels, num_rows)
    odds = np.maximum(counts, 0.5) / np.maximum(num_rows - counts, 0.5)
    return weights, dataclasses.replace(start, log_odds=np.log(weights * odds))


def initial_model(
    config: TrainConfig,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    report: Report = lambda line: None,
) -> tuple[PreTrainedModel, NDArray[np.float64]]:
    """Return the model as training begins, on the CPU in float32, and the weights of the classes [C].

    Call on all processes. `report` gets what happened to the model's head, vocabulary and layers.
    """
    weights, start = _loss_weights(config.class_weights, data)
    set_seed(config.seed)  # the new head is drawn from it, alike on every process
    model = load_model(config, data.labels, accelerator.device, report, start)
    fit_to_tokenizer(model, tokenizer, report)
    return as_student(model, config, accelerator, tokenizer, data, report), weights


def build_training(
    config: TrainConfig,
    accelerator: Accelerator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    weights: NDArray[np.float64],
    run: RunDirectory,
    console: Console,
) -> Training:
    """Return everything the loop needs; `weights` are of the classes [C]; call on all processes."""
    num_steps = num_steps_of(config, data)
    identity = Identity(
        parameters={name: list(parameter.shape) for name, parameter in model.named_parameters()},
        labels=data.labels,
        data_fingerprint=data.fingerprint_of_learned,
        num_steps=num_steps,
    )
    dtype = next(model.parameters()).dtype
    freeze_unused_parameters(model, tokenizer.model_input_names)
    omit_masks = (
        accelerator.device.type == "cuda"
        and not config.compile  # a missing input is another graph
        and take_masks_as_given(model, int(tokenizer.pad_token_id))
    )
    masks = None
    if accelerator.device.type == "cpu" and not config.compile:  # compiled dropout is as fast
        masks = replace_dropout(model)
    if config.compile:
        model.compile(dynamic=True, mode=config.compile_mode)  # in place: a wrapper would rename the weights
    if accelerator.distributed_type == DistributedType.FSDP:
        shard_by_layer(accelerator.state.fsdp_plugin, model)
    else:
        model.to(accelerator.device)  # before the optimizer, which chooses its kernel by device
    with warnings.catch_warnings():
        # torch renamed the option; Accelerate does not pass the new name yet.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    if accelerator.is_main_process:
        run.write_record(
            device=str(accelerator.device),
            num_processes=accelerator.num_processes,
            distributed_type=accelerator.distributed_type.value,
            mixed_precision=accelerator.mixed_precision,
            data_fingerprint=data.fingerprint,
            rows={name: len(split) for name, split in data.splits.items()},
        )
    graphs = None
    is_alone = accelerator.distributed_type == DistributedType.NO
    by_default = is_default(
        model.config.model_type, accelerator.mixed_precision, is_one_process=is_alone, omits_masks=omit_masks
    )
    if by_default if config.cuda_graphs is None else config.cuda_graphs:
        graphs = PassGraphs((each for each in prepared.parameters() if each.requires_grad), CudaCapture())
    is_half_on_gpu = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no"
    return Training(
        config=config,
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        tokenizer=tokenizer,
        data=data,
        class_weights=torch.tensor(weights, dtype=dtype, device=accelerator.device),
        checkpoints=CheckpointStore(
            run.checkpoints,
            config.keep_checkpoints,
            identity,
            num_warmup_updates(num_steps, config) if config.lr_schedule == "constant" else None,
        ),
        progress=Progress(run.logs, accelerator, console, num_steps=num_steps, log_every=config.log_every),
        num_steps=num_steps,
        dropout_masks=masks,
        graphs=graphs,
        omit_masks=omit_masks,
        pad_to_multiple_of=WIDTH_MULTIPLE if graphs else 8 if is_half_on_gpu else 1,  # 8: tensor cores
    )


def restore(training: Training) -> TrainState:
    """Load the newest valid checkpoint when resuming; return its state, or that of a new run.

    Raises:
        InputError: the checkpoint is of another model, label set or data.
    """
    if training.config.resume is None:
        return TrainState()
    on_main_process(training.accelerator, training.checkpoints.clear_leftovers)
    newest, problems = on_main_process(training.accelerator, training.checkpoints.newest_valid)
    for problem in problems:
        training.progress.note(f"Skipping damaged checkpoint {problem}")
    if newest is None:
        on_main_process(training.accelerator, lambda: _record_changes(training))
        training.progress.note("No usable checkpoint yet: starting from the first step.")
        return TrainState()
    state = training.checkpoints.restore(newest, training.accelerator, training.model, training.optimizer)
    on_main_process(training.accelerator, lambda: _record_changes(training))
    training.progress.note(f"Continuing from {newest.name}, {training.num_steps - state.step:,} steps to go.")
    return state


def _record_changes(training: Training) -> None:
    """Write what a resumed run does otherwise from now on into its configuration: its length, and when it abstains."""
    path, config = training.checkpoints.folder.parent / CONFIG_FILE, training.config
    recorded = read_config(path)
    changed = {name: getattr(config, name) for name in LENGTH_FLAGS | DECISION_FLAGS}
    if (current := dataclasses.replace(recorded, **changed)) != recorded:
        write_yaml(path, current)


def print_run(console: Console, training: Training) -> None:
    """Print the quantities derived from the configuration."""
    config, accelerator, plan = training.config, training.accelerator, training.plan(0)
    is_short = training.num_steps < STEPS_OF_SHORT_RUN and config.epochs < 10 and config.max_steps is None
    table = Table(title="Run", title_justify="left", box=None, pad_edge=False, show_header=False)
    rows = {
        "model": config.model_name,
        "device": f"{accelerator.device.type}, {accelerator.num_processes} process"
        + (f"es, {accelerator.distributed_type.value.lower()}" if accelerator.num_processes > 1 else ""),
        "precision": precision_name(accelerator) + (", CUDA graphs" if training.graphs else ""),
        "optimizer steps": f"{training.num_steps:,} ({len(plan):,} per epoch)"
        + ("; so few may learn too little: try --epochs 10" if is_short else ""),
        "rows per step": f"{config.batch_size:,} (micro-batches per process: {plan.step(0).num_micro_batches})",
        "tokens per step": f"{plan.lengths.sum() / len(plan):,.0f} on average",
        "learning rate": f"{config.learning_rate:g}, {config.lr_schedule}, warm-up over {config.warmup_ratio:.0%}"
        + ("" if config.layer_decay in (None, 1.0) else f"; each layer {config.layer_decay:g} of the one above"),
        "class weights": str(config.class_weights),
        "run directory": str(training.checkpoints.folder.parent),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table, highlight=False)
