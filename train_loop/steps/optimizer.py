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


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Return the parameters in groups of one weight decay and one share of the learning rate.

    Biases and everything in a norm layer have no weight decay. Norms are recognised by type, not name:
    "LayerNorm.weight" misses DistilBERT's `sa_layer_norm` and ModernBERT's `norm`. The head has the whole learning
    rate, and so has the last layer; each layer below has `layer_decay` of the one above, and the embeddings the least.
    """
    norms = {
        f"{module_name}.{name}" if module_name else name
        for module_name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False)
    }
    depths = {} if layer_decay == 1.0 else _depths(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if name in norms or name.endswith("bias") else weight_decay
            groups.setdefault((layer_decay ** depths.get(parameter, 0), decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "share": share} for (share, decay), parameters in groups.items()
    ]


def _depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how many layers are above each parameter of the encoder's layers and embeddings."""
    encoder = getattr(model, "base_model", model)
    stacks = [(name, child) for name, child in encoder.named_modules() if isinstance(child, nn.ModuleList)]
    path, layers = max(stacks, key=lambda stack: len(stack[1]), default=("", nn.ModuleList()))
    depths = {}
    for name, parameter in encoder.named_parameters():
        if name.startswith(f"{path}."):
            depths[parameter] = len(layers) - 1 - int(name.removeprefix(f"{path}.").split(".")[0])
        elif "emb" in name:
            depths[parameter] = len(layers)
    return depths


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the model's parameters, fused if torch has a fused kernel for their device."""
    devices = {parameter.device.type for parameter in model.parameters()}
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay, config.layer_decay or 1.0),
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
        group["lr"] = learning_rate * group["share"]
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
