"""The training loop; read it from top to bottom.

One optimizer step: take its rows from the plan, run each micro-batch forward and backward over the step's
one denominator, clip, set the learning rate, update. "Step" always means optimizer step.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import time

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from torch.distributed.tensor import DTensor

from serve.contract.errors import InputError, WorkStopped
from train_loop.config import LOWER_IS_BETTER
from train_loop.machine.device import is_out_of_memory, return_unused_memory
from train_loop.machine.processes import from_all_processes
from train_loop.run.checkpoint import TrainState
from train_loop.run.interrupt import Interrupted, InterruptWatch
from train_loop.run.progress import StepReport
from train_loop.steps.feed import MicroBatch, StepFeed, to_device
from train_loop.steps.loss import loss_sum
from train_loop.steps.optimizer import learning_rate_at, update
from train_loop.steps.outcome import HostCopy
from train_loop.steps.plan import BatchPlan, StepPlan
from train_loop.training import Training

TRIM_MEMORY_EVERY = 50  # steps between returns of unused memory, on a CPU
MAX_SKIPPED = 20
"""Updates in a row that fp16 may skip. Its scale falls from 65,536 to 1 in 16; what still overflows always will."""
DDP_TYPES = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.MULTI_XPU)


class NonFiniteLoss(WorkStopped):
    """The loss or its gradient is NaN or infinite; the weights were not touched."""


@dataclasses.dataclass(kw_only=True)
class _StepUnderway:
    """A step that the device may still be computing."""

    number: int  # steps before it
    epoch: float
    plan: StepPlan
    learning_rate: float
    numbers: HostCopy
    """[5]: loss of all processes, own loss, gradient norm, a signal that any process received or 0, 1 if skipped."""
    seconds: float


def train(training: Training, state: TrainState) -> None:
    """Run from `state.step` to the end, keeping `state` current; call on all processes.

    Raises:
        Interrupted: a signal arrived; the step that was running is finished and saved.
        NonFiniteLoss: no update was made from it; or fp16 skipped MAX_SKIPPED updates in a row.
        InputError: a checkpoint cannot be written, or a single row does not fit into memory.
    """
    config, accelerator = training.config, training.accelerator
    patience = config.early_stopping_patience or math.inf
    plan, epoch = training.plan(0), 0
    steps_per_epoch = len(plan)
    underway: _StepUnderway | None = None
    training.model.train()
    with (
        StepFeed(training.collate, accelerator.process_index) as feed,
        InterruptWatch() as watch,
        training.progress.running(state.step),
    ):
        while state.step < training.num_steps and state.evaluations_since_best < patience:
            began = time.perf_counter()
            if state.step // steps_per_epoch != epoch:
                epoch = state.step // steps_per_epoch
                plan = training.plan(epoch)
                feed.discard()
            step_plan, loss = _forward_and_backward(training, state.step, feed, plan)

            # From here on, gradients are complete and identical on every process.
            gradient_norm = accelerator.clip_grad_norm_(training.model.parameters(), config.max_grad_norm or math.inf)
            numbers, is_bad = _outcome(accelerator, loss, gradient_norm, watch.received)
            # The only wait for the device, and it is for the step before: this step's work is queued already.
            interrupted = _settle(training, state, underway)
            learning_rate = learning_rate_at(state.num_updates, training.num_steps, config)
            skipped = update(accelerator, training.optimizer, learning_rate, is_bad)
            training.zero_grad()

            underway = _StepUnderway(
                number=state.step,
                epoch=(state.step + 1) / steps_per_epoch,
                plan=step_plan,
                learning_rate=learning_rate,
                numbers=HostCopy(torch.cat([numbers, skipped.to(numbers.dtype).reshape(1)])),
                seconds=0.0,
            )
            state.step += 1
            is_last = state.step == training.num_steps
            evaluate = is_last or state.step % (config.eval_every or steps_per_epoch) == 0
            save = evaluate or bool(interrupted) or bool(config.save_every and state.step % config.save_every == 0)
            if state.step % TRIM_MEMORY_EVERY == 0:
                return_unused_memory(accelerator.device)
            underway.seconds = time.perf_counter() - began
            state.seconds += underway.seconds

            if save:
                interrupted = _settle(training, state, underway) or interrupted
                underway = None
            if evaluate:
                _evaluate(training, state, state.step / steps_per_epoch)
            if save:
                training.checkpoints.save(accelerator, training.model, training.optimizer, state)
            if interrupted and not is_last:
                raise Interrupted(interrupted, state.step, training.checkpoints.folder.parent)


def _forward_and_backward(training: Training, step: int, feed: StepFeed, plan: BatchPlan) -> tuple[StepPlan, Tensor]:
    """Accumulate a step's gradients; if memory runs out, cut the step finer and start it over.

    Returns the plan carried out and this process's share of the step's loss. By promise T1 the cut
    changes nothing but which rows share a dropout draw.
    """
    index = step % len(plan)
    step_plan, batches = feed.take(
        index, lambda i: plan.step(i, training.max_tokens_per_forward), last=index + 1 == len(plan)
    )
    while (loss := _attempt(training, step, step_plan, batches)) is None:
        _cut_finer(training, step, step_plan)
        feed.discard()
        step_plan, batches = feed.build(plan.step(index, training.max_tokens_per_forward))
    return step_plan, loss


def _attempt(training: Training, step: int, step_plan: StepPlan, batches: list[MicroBatch]) -> Tensor | None:
    """Run a step's micro-batches; return this process's share of the loss, or None if any process ran out of memory."""
    accelerator = training.accelerator
    _seed_dropout(training, step)
    # Under DDP the last backward pass exchanges gradients: a process that runs out of memory in it would
    # leave the others waiting forever. So a step with a size not tried before runs without the exchange,
    # the processes agree that it fitted, and an empty pass makes the exchange.
    untried = [size for size in set(step_plan.sizes) if not _fits(size, training.sizes_that_fit)]
    agree_first = bool(untried) and accelerator.distributed_type in DDP_TYPES
    loss = None
    try:
        loss = _run_micro_batches(training, step_plan, batches, exchange=not agree_first)
    except RuntimeError as error:
        may_cut = agree_first or accelerator.num_processes == 1
        if not (may_cut and is_out_of_memory(error)):
            raise
    if agree_first:
        if any(from_all_processes(accelerator, loss is None)):
            return None
        _run_micro_batches(training, step_plan, [training.collate(np.empty(0, np.int64))], exchange=True)
    if loss is not None and training.optimizer.state:  # AdamW allocates it in the first update; then less room is left
        training.sizes_that_fit.update(untried)
    return loss


def _seed_dropout(training: Training, step: int) -> None:
    """Seed from (seed, step, process), so that resuming needs no random generator's state."""
    entropy = [training.config.seed, step, training.accelerator.process_index]
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    torch.manual_seed(seed)
    if training.dropout_masks is not None:
        training.dropout_masks.seed(seed)


def _fits(size: tuple[int, int], known: set[tuple[int, int]]) -> bool:
    """Return whether a micro-batch with at least as many rows, at least as long, is known to fit into memory.

    The number of tokens would not do: attention takes memory by the square of the length.
    """
    return any(size[0] <= rows and size[1] <= width for rows, width in known)


def _run_micro_batches(training: Training, step_plan: StepPlan, batches: list[MicroBatch], *, exchange: bool) -> Tensor:
    """Run forward and backward over micro-batches; return their share of the step's loss, a scalar.

    With `exchange`, the last backward pass averages gradients over processes; no other pass does.
    """
    accelerator = training.accelerator
    total = torch.zeros((), dtype=training.class_weights.dtype, device=accelerator.device)
    denominator = torch.full_like(total, step_plan.weight_sum)
    for number, batch in enumerate(to_device(batches, accelerator.device), start=1):
        last = exchange and number == len(batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(training.model):
            if training.graphs is None:
                total += _one_pass(training, batch, denominator)
            else:
                total += training.graphs.run(functools.partial(_one_pass, training), batch, denominator)
    return total


def _one_pass(training: Training, batch: MicroBatch, denominator: Tensor) -> Tensor:
    """Run forward and backward over one micro-batch; return its share of the step's loss, a scalar."""
    config, accelerator = training.config, training.accelerator
    with accelerator.autocast():  # Accelerate adds it to every model but a sharded one
        logits = training.model(**batch.inputs).logits  # [B, C]
    if batch.is_filler:
        loss = _zero(training, logits)
    else:
        # The denominator is the sum of weights of the WHOLE step, over all micro-batches and
        # processes: only then does a row weigh the same however the step is cut.
        loss = (
            loss_sum(
                logits,
                batch.labels,
                training.class_weights,
                kind=config.loss,
                label_smoothing=config.label_smoothing,
                focal_gamma=config.focal_gamma,
                num_windows=batch.num_windows,
                teacher_logits=batch.teacher_logits,
                teacher_weights=batch.teacher_weights,
                temperature=config.distil_temperature,
            )
            / denominator
        )
    accelerator.backward(loss * accelerator.num_processes)  # DDP and FSDP average gradients over processes
    return loss.detach()


def _zero(training: Training, logits: Tensor) -> Tensor:
    """Return a loss of 0 that gives every parameter a gradient of 0.

    Under DDP it leaves out what the model computed: logits that overflowed in fp16, times 0, are NaN.
    """
    trainable = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    if isinstance(trainable[0], DTensor):  # FSDP's hooks are on the way back from the logits
        return logits.sum() * 0.0
    return torch.stack([parameter.flatten()[0] for parameter in trainable]).sum() * 0.0


def _cut_finer(training: Training, step: int, step_plan: StepPlan) -> None:
    """Drop a failed attempt's gradients and halve the tokens of a forward pass."""
    training.zero_grad()
    if training.graphs is not None:
        training.graphs.clear()
    clear_device_cache()
    num_rows, num_tokens = step_plan.largest
    if num_rows == 1:
        raise InputError(
            f"step {step + 1}: a single row of {num_tokens} tokens does not fit into memory; lower "
            "--max_length, choose a smaller model, or free memory, and continue with --resume"
        )
    training.max_tokens_per_forward = num_tokens // 2
    training.progress.note(
        f"Out of memory at {num_tokens:,} tokens in one forward pass: retrying the step with at most "
        f"{training.max_tokens_per_forward:,}. What is learned does not change (with dropout: in expectation)."
    )


def _outcome(
    accelerator: Accelerator, loss: Tensor, gradient_norm: Tensor, signal_number: int
) -> tuple[Tensor, Tensor]:
    """Return the step's numbers [4], as in `_StepUnderway`, and whether they forbid an update; all on the device."""
    shared = torch.stack([loss, torch.full_like(loss, signal_number)])
    if accelerator.num_processes > 1:
        gathered = accelerator.gather(shared.unsqueeze(0))  # [P, 2]
        shared = torch.stack([gathered[:, 0].sum(), gathered[:, 1].max()])
    if isinstance(gradient_norm, DTensor):
        gradient_norm = gradient_norm.full_tensor()
    gradient_norm = gradient_norm.to(loss.dtype)
    is_bad = ~(torch.isfinite(shared[0]) & torch.isfinite(gradient_norm))
    return torch.stack([shared[0], loss, gradient_norm, shared[1]]), is_bad


def _settle(training: Training, state: TrainState, underway: _StepUnderway | None) -> int:
    """Wait for a step, count and report it; return the signal that any process received in it, or 0."""
    if underway is None:
        return 0
    loss, own_loss, gradient_norm, signal_number, skipped = underway.numbers.array().tolist()
    # fp16 overflows now and then; its scaler skips such a step by itself.
    bad_gradient = training.accelerator.scaler is None and not math.isfinite(gradient_norm)
    if bad_gradient or not math.isfinite(loss):
        raise NonFiniteLoss(_non_finite_message(training, underway.number, own_loss, loss))
    state.num_updates += not skipped
    state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
    training.progress.after_step(
        StepReport(
            step=underway.number + 1,
            epoch=underway.epoch,
            loss=loss,
            learning_rate=underway.learning_rate,
            gradient_norm=gradient_norm,
            updated=not skipped,
            num_rows=underway.plan.num_rows,
            num_tokens=underway.plan.num_tokens,
            num_padded_tokens=underway.plan.num_padded_tokens,
            seconds=underway.seconds,
        )
    )
    if state.skipped_in_a_row == MAX_SKIPPED:
        raise NonFiniteLoss(_skipped_message(training, underway.number + 1))
    return int(signal_number)


def _evaluate(training: Training, state: TrainState, epoch: float) -> None:
    metrics = training.evaluate(training.data.splits["validation"])
    name = training.config.metric_for_best or "loss"
    score = -metrics[name] if name in LOWER_IS_BETTER else metrics[name]
    if math.isnan(score):  # a rank metric of a split without both kinds of rows: the loss decides
        score = 0.0
    improved = state.best_score is None or score > state.best_score
    # Small validation splits often tie; the lower loss decides then.
    if improved or (score == state.best_score and metrics["loss"] < state.best_loss):
        state.best_score, state.best_loss, state.best_step = score, metrics["loss"], state.step
    state.evaluations_since_best = 0 if improved else state.evaluations_since_best + 1
    state.evaluations.append({"step": state.step, "epoch": epoch, **metrics})
    training.progress.after_evaluation(state.step, epoch, metrics, is_best=state.best_step == state.step)
    if training.after_evaluation is not None:
        training.after_evaluation(state.step / training.num_steps, score)


def _non_finite_message(training: Training, step: int, own_loss: float, loss: float) -> str:
    epoch, index = divmod(step, len(training.plan(0)))
    rows = training.plan(epoch).step(index, training.max_tokens_per_forward).rows[training.accelerator.process_index]
    is_fine = math.isfinite(own_loss) and not math.isfinite(loss)
    mine = [] if is_fine else training.collate.rows_of(np.concatenate(rows)).tolist()
    suspects = sorted(set(itertools.chain.from_iterable(from_all_processes(training.accelerator, mine))))
    numbers = [training.learned.row_number(row) for row in suspects]
    what = "loss" if not math.isfinite(loss) else "gradient"
    return (
        f"step {step + 1}: the {what} is not finite (loss {loss}), so training stops before the update. Rows of "
        f"the step in {training.learned.origin}, counted from 1: {', '.join(map(str, numbers[:64]))}"
        f"{' ...' if len(numbers) > 64 else ''}. Look at those texts; then lower --learning_rate, set --max_grad_norm, "
        "or use --mixed_precision bf16 or no in a new run. The last checkpoint is unaffected"
    )


def _skipped_message(training: Training, step: int) -> str:
    return (
        f"step {step}: fp16 overflowed in {MAX_SKIPPED} steps in a row, at ever smaller scales, so nothing "
        "is learned any more. Continue from the last checkpoint in a precision with more range: --resume "
        f"{training.checkpoints.folder.parent} --mixed_precision bf16 (or no)"
    )
