"""What the loop needs, put together: prepared model and optimizer, class weights, checkpoints, trackers."""

import math
import warnings

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from train_loop.checkpoint import CheckpointStore, Identity, TrainState
from train_loop.config import TrainConfig
from train_loop.data import Data
from train_loop.device import shard_by_layer
from train_loop.dropout import replace_dropout
from train_loop.loop import Training
from train_loop.model import freeze_unused_parameters
from train_loop.optimizer import build_optimizer
from train_loop.processes import on_main_process
from train_loop.progress import Progress
from train_loop.run_directory import RunDirectory


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
    """Return everything the loop needs, with class weights [C]; call it on all processes."""
    num_steps = config.epochs * math.ceil(len(data.train) / config.batch_size)
    if config.max_steps is not None:
        num_steps = min(num_steps, config.max_steps)
    identity = Identity(
        parameters={name: list(parameter.shape) for name, parameter in model.named_parameters()},
        labels=data.labels,
        data_fingerprint=data.fingerprint,
        num_steps=num_steps,
    )
    dtype = next(model.parameters()).dtype
    freeze_unused_parameters(model, tokenizer.model_input_names)
    masks = None
    if accelerator.device.type == "cpu" and not config.compile:  # the compiler draws its own, as fast
        masks = replace_dropout(model)
    if config.compile:
        model.compile(dynamic=True)  # in place: a wrapper would change the names of the weights
    if accelerator.distributed_type == DistributedType.FSDP:
        shard_by_layer(accelerator.state.fsdp_plugin, model)
    else:
        model.to(accelerator.device)  # before the optimizer, which picks its kernel by the device
    with warnings.catch_warnings():
        # torch renamed the option, and Accelerate cannot pass the new name yet.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        prepared, optimizer = accelerator.prepare(model, build_optimizer(model, config))
    _start_trackers(config, accelerator, run)
    if accelerator.is_main_process:
        run.write_record(
            device=str(accelerator.device),
            num_processes=accelerator.num_processes,
            distributed_type=accelerator.distributed_type.value,
            mixed_precision=accelerator.mixed_precision,
            data_fingerprint=data.fingerprint,
            rows={name: len(split) for name, split in data.splits.items()},
        )
    is_half_on_gpu = accelerator.device.type == "cuda" and accelerator.mixed_precision != "no"
    return Training(
        config=config,
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        tokenizer=tokenizer,
        data=data,
        class_weights=torch.tensor(weights, dtype=dtype, device=accelerator.device),
        checkpoints=CheckpointStore(run.checkpoints, config.keep_checkpoints, identity),
        progress=Progress(run.logs, accelerator, console, num_steps=num_steps, log_every=config.log_every),
        num_steps=num_steps,
        dropout_masks=masks,
        pad_to_multiple_of=8 if is_half_on_gpu else 1,  # tensor cores
    )


def restore(training: Training) -> TrainState:
    """Return where the run stands: its newest valid checkpoint, or the beginning.

    Raises:
        InputError: the checkpoint is of another model, label set or data.
    """
    if training.config.resume is None:
        return TrainState()
    on_main_process(training.accelerator, training.checkpoints.clear_leftovers)
    newest, problems = on_main_process(training.accelerator, training.checkpoints.newest_valid)
    for problem in problems:
        training.progress.note(f"Damaged checkpoint left aside: {problem}")
    if newest is None:
        training.progress.note("No usable checkpoint yet: the run begins at its first step.")
        return TrainState()
    state = training.checkpoints.restore(newest, training.accelerator, training.model, training.optimizer)
    training.progress.note(f"Continuing from {newest.name}, {training.num_steps - state.step:,} steps to go.")
    return state


def _start_trackers(config: TrainConfig, accelerator: Accelerator, run: RunDirectory) -> None:
    if not config.trackers:
        return
    accelerator.project_configuration.project_dir = str(run.path)
    accelerator.project_configuration.logging_dir = str(run.logs)
    accelerator.init_trackers("rawloop", config={name: str(value) for name, value in vars(config).items()})
