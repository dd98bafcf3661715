"""AdamW with its parameter groups, the learning rate of each update, and the update.

The learning rate is a function of the number of updates made, set before each step, and not a scheduler
prepared by Accelerate: that steps `num_processes` times per update, so warm-up and decay would shrink with
the number of processes (accelerate `scheduler.py`). A function has no state to save either, and stands
still when fp16 skips a step (promise T5).
"""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train_loop.config import TrainConfig


def learning_rate_at(update: int, num_updates: int, config: TrainConfig) -> float:
    """Return the learning rate of update `update` (0, 1, ...) of `num_updates`.

    Rises linearly to the peak over ceil(warmup_ratio * num_updates) updates, starting above 0; then decays
    to 0 just after the last update, or stays constant.
    """
    peak = config.learning_rate
    assert peak is not None, "it has its default"
    num_warmup = num_warmup_updates(num_updates, config)
    if update < num_warmup:
        return peak * (update + 1) / num_warmup
    done = min(1.0, (update - num_warmup) / max(1, num_updates - num_warmup))
    if config.lr_schedule == "linear":
        return peak * (1.0 - done)
    if config.lr_schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * done))
    return peak


def num_warmup_updates(num_updates: int, config: TrainConfig) -> int:
    """Return the number of updates over which the learning rate rises."""
    return math.ceil(config.warmup_ratio * num_updates - 1e-9)  # 0.07 * 100 is slightly above 7


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters into decayed and undecayed: biases and everything in a norm layer are not decayed.

    Norms are recognised by type, not name: "LayerNorm.weight" misses DistilBERT's `sa_layer_norm` and
    ModernBERT's `norm`.
    """
    norms = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (undecayed if name in norms or name.endswith("bias") else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the model's parameters, fused if torch has a fused kernel for their device."""
    devices = {parameter.device.type for parameter in model.parameters()}
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate or 0.0,  # `update` sets it
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=devices <= {"cuda", "cpu", "mps", "xpu"},
    )


def update(accelerator: Accelerator, optimizer: torch.optim.Optimizer, learning_rate: float, is_bad: Tensor) -> Tensor:
    """Set the learning rate and update the weights, unless the gradients are bad; return whether it was skipped.

    The device decides by itself, so that the CPU need not wait for it. Both flags are scalars on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    scaler = accelerator.scaler
    if scaler is None:
        fused: Any = getattr(optimizer, "optimizer", optimizer)  # inside Accelerate's wrapper
        fused.found_inf = is_bad.to(torch.float32)  # as torch's GradScaler hands it to fused optimizers
        optimizer.step()
        del fused.found_inf
        return is_bad
    # A fused optimizer is always called and skips internally, so "was it called" proves nothing
    # (accelerate issue 4242); the scaler lowers its scale if, and only if, it skipped. get_scale() would wait.
    scale_before = scaler._scale.clone()
    optimizer.step()
    skipped: Tensor = scaler._scale < scale_before
    return skipped
