"""A student: some of a model's own layers and feed-forward units, as a model of the same class.

Where a resumed run makes its student again, a checkpoint replaces the weights, so that any choice of layers will do.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.errors import InputError
from serve.contract.long_texts import pool
from train_loop.config import TrainConfig
from train_loop.machine.processes import from_all_processes
from train_loop.model.weights import Report, keep_logits_precise
from train_loop.rows.data import Data
from train_loop.rows.split import Labels, Split
from train_loop.steps.feed import Collator
from train_loop.steps.scoring import evaluate_logits, predict_logits

NUM_ROWS = 1000
"""Validation rows, at most, by which layers and units are chosen."""
FFN_FIELDS = ("intermediate_size", "hidden_dim", "d_inner")
"""Names that architectures give to the number of feed-forward units."""


def as_student(
    model: PreTrainedModel,
    config: TrainConfig,
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerFast,
    data: Data,
    report: Report,
) -> PreTrainedModel:
    """Return a model with the layers and feed-forward units that the configuration asks for; call on all processes.

    Raises:
        InputError: the model has no more of them, they are not where they can be taken from, or it answers no better
            than a guess, where its answers choose the layers.
    """
    num_layers, num_units = config.student_layers, config.student_ffn
    if num_layers is None and num_units is None:
        return model
    model.to(accelerator.device)
    is_resumed = config.resume is not None

    def logits_of_sample(max_tokens: int) -> tuple[Split, NDArray[np.float32]]:
        """Return some validation rows, and the model's logits of them, in passes of as many tokens."""
        validation = data.splits["validation"]
        rows = np.linspace(0, len(validation) - 1, min(NUM_ROWS, len(validation))).astype(np.int64)
        sample = validation.take(rows)
        collate = Collator(sample, tokenizer, data.max_length)
        logits = predict_logits(accelerator, model, len(data.labels), collate, max_tokens)
        return sample, pool(logits, sample.num_windows, config.long_text_rule.pooling)

    def loss() -> float:
        sample, logits = logits_of_sample(config.eval_max_tokens_per_forward)
        return evaluate_logits(logits, sample.labels, data.offset, data.scale)["loss"]

    if num_layers is not None:
        layers = _Layers.of(model)
        if num_layers >= (own := len(layers.modules)):
            raise InputError(f"--student_layers {num_layers}: {config.model_name} has {own} layers; ask for fewer")
        kept = _evenly(own, num_layers)
        if config.student_layer_choice == "importance" and not is_resumed:
            guess = evaluate_logits(*_guess(data), data.offset, data.scale)["loss"]
            if (now := loss()) >= guess:
                raise InputError(
                    f"--student_layer_choice importance: {config.model_name} answers no better than a guess (loss "
                    f"{now:.3f}, of a guess {guess:.3f}); start from a trained classifier, or leave it out"
                )
            kept = _by_importance(layers, num_layers, loss, report)
        layers.keep(kept)
        _set_layers(model, kept)
        report(f"Student: layers {', '.join(str(index + 1) for index in kept)} of {own}.")
    if num_units is not None:
        pairs, own = _feed_forward(model), model.config.to_dict()[_ffn_field(model)]
        if num_units >= own:
            raise InputError(
                f"--student_ffn {num_units}: {config.model_name} has {own} units in a layer; ask for fewer"
            )
        activity = np.ones((len(pairs), own))
        if not is_resumed:
            # Row by row: padding is active too, and how much there is depends on the number of processes.
            activity = _activity(pairs, lambda: logits_of_sample(1), accelerator)
        for (up, down), active in zip(pairs, activity, strict=True):
            _keep_units(up, down, np.sort(np.argsort(-active, kind="stable")[:num_units]))
        setattr(model.config, _ffn_field(model), num_units)
        share = np.sort(activity)[:, ::-1][:, :num_units].sum() / activity.sum()
        report(f"Student: {num_units:,} of {own:,} feed-forward units in each layer, with {share:.1%} of their output.")
    # As it is read again: what depends on the number of a layer follows its new number.
    student = type(model)(model.config)
    try:
        student.load_state_dict(model.state_dict())
    except RuntimeError as error:  # ModernBERT's first layer lacks a norm that the others have
        kind = model.config.model_type
        raise InputError(f"--student_layers: {kind}'s layers are not alike, so some cannot go; leave it out") from error
    keep_logits_precise(student)
    return student.to("cpu")


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The layers of an encoder, and where they are."""

    parent: nn.Module
    name: str
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Layers":
        count = model.config.num_hidden_layers
        found = [
            cls(parent, name, tuple(child))
            for parent in model.base_model.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList) and len(child) == count
        ]
        if len(found) != 1 or count < 2:
            raise InputError(
                f"--student_layers: {model.config.model_type} has no list of its {count} layers, as where they share "
                "weights; leave it out"
            )
        return found[0]

    def keep(self, indices: Sequence[int]) -> None:
        setattr(self.parent, self.name, nn.ModuleList(self.modules[index] for index in indices))


def _set_layers(model: PreTrainedModel, kept: Sequence[int]) -> None:
    model.config.num_hidden_layers = len(kept)
    if (kinds := getattr(model.config, "layer_types", None)) is not None:
        model.config.layer_types = [kinds[index] for index in kept]


def _evenly(own: int, wanted: int) -> list[int]:
    """Return evenly spaced layers, the last among them: of 6, 3 are the second, the fourth and the last."""
    return [(index + 1) * own // wanted - 1 for index in range(wanted)]


def _by_importance(layers: _Layers, wanted: int, loss: Callable[[], float], report: Report) -> list[int]:
    """Remove one layer after the other, each time the one without which the loss is lowest."""
    kept = list(range(len(layers.modules)))
    while len(kept) > wanted:
        losses = []
        for index in kept:
            layers.keep([other for other in kept if other != index])
            losses.append(loss())
        worst = kept[int(np.argmin(losses))]
        report(f"Without layer {worst + 1}, the loss on validation rows is {min(losses):.4f}.")
        kept.remove(worst)
    return kept


def _guess(data: Data) -> tuple[NDArray[np.float32], Labels]:
    """Return the logits that fit validation rows best if all are the same [N, C], and what is known of the rows."""
    labels = data.splits["validation"].labels
    if data.problem_type == "regression":
        return np.zeros((len(labels), 1), np.float32), labels
    is_class = labels if labels.ndim == 2 else labels[:, None] == np.arange(len(data.labels))
    shares = np.clip(is_class.mean(axis=0), 1e-6, 1 - 1e-6)
    logits = np.log(shares) - (np.log1p(-shares) if labels.ndim == 2 else 0.0)
    return np.tile(logits.astype(np.float32), (len(labels), 1)), labels


def _ffn_field(model: PreTrainedModel) -> str:
    fields = model.config.to_dict()
    return next((name for name in FFN_FIELDS if name in fields), FFN_FIELDS[0])


def _feed_forward(model: PreTrainedModel) -> list[tuple[nn.Linear, nn.Linear]]:
    """Return the two linear layers of each feed-forward block, into its units and out of them."""
    width, units = model.config.hidden_size, getattr(model.config, _ffn_field(model), None)
    linear = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    up = [module for module in linear if (module.in_features, module.out_features) == (width, units)]
    down = [module for module in linear if (module.in_features, module.out_features) == (units, width)]
    if width == units or not up or len(up) != len(down):
        raise InputError(
            f"--student_ffn: the feed-forward blocks of {model.config.model_type} are not two linear layers with "
            "units between them; leave it out"
        )
    return list(zip(up, down, strict=True))


def _activity(
    pairs: list[tuple[nn.Linear, nn.Linear]], run: Callable[[], object], accelerator: Accelerator
) -> NDArray[np.float64]:
    """Return how much each unit adds to its block's output: the mean square, over tokens, of its part [L, units]."""
    sums = {down: torch.zeros(down.in_features, dtype=torch.float64) for _, down in pairs}

    def add(module: nn.Linear, inputs: tuple[Tensor, ...]) -> None:
        sums[module] += inputs[0].detach().float().square().flatten(0, -2).sum(0).cpu()

    hooks = [down.register_forward_pre_hook(add) for _, down in pairs]
    run()
    for hook in hooks:
        hook.remove()
    of_all = from_all_processes(accelerator, [sums[down].numpy() for _, down in pairs])
    norms = np.stack([down.weight.detach().cpu().double().square().sum(0).numpy() for _, down in pairs])
    total: NDArray[np.float64] = np.sum([np.stack(each) for each in of_all], axis=0) * norms
    return total


def _keep_units(up: nn.Linear, down: nn.Linear, units: NDArray[np.int64]) -> None:
    up.weight, down.weight = nn.Parameter(up.weight[units].detach()), nn.Parameter(down.weight[:, units].detach())
    if up.bias is not None:
        up.bias = nn.Parameter(up.bias[units].detach())
    up.out_features = down.in_features = len(units)
