"""The encoder's weights and its classification head, loaded: only the head may be new."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from train_loop.config import TrainConfig
from train_loop.model.pretrained import load_model_config, not_found, resolve_model

WRAPPERS = re.compile(r"^(_orig_mod\.|module\.)+")
"""Prefixes that torch.compile and DistributedDataParallel add to the names of weights."""
POOLER = "pooler"
"""Part of the encoder that belongs to the head: models pretrained on masked words lack it, so it may be new."""
NUM_NAMED = 3  # weights or labels that a message names
Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadStart:
    """How the head begins."""

    problem_type: ProblemType = "single_label_classification"
    log_odds: NDArray[np.float64] | None = None
    """Of each of several labels in the training rows [C], for the bias of a new head: an optimizer that moves it by the
    learning rate at most takes thousands of steps to learn that labels are rare."""
    offset: float = 0.0
    scale: float = 1.0  # numbers: the model learns (number - offset) / scale


def load_model(
    config: TrainConfig,
    labels: tuple[str, ...],
    device: torch.device,
    report: Report = lambda line: None,
    start: HeadStart = HeadStart(),
) -> PreTrainedModel:
    """Return the encoder with its classification head, on the CPU, in float32.

    A head for the same labels is kept, in the order of `labels`; otherwise its last layer is new. Seed before calling:
    torch's generator initializes it. `device` is where the model will train; `report` gets what happened to the head;
    `start` is for models of several labels or numbers.

    Raises:
        InputError: the model cannot be found, has no sequence classification class, or its encoder's weights are not
            those that its config.json describes.
    """
    model_config = load_model_config(config)
    head_labels = label_names(model_config)
    model_config.num_labels = len(labels)
    name_labels(model_config, labels)
    model_config.problem_type = start.problem_type
    if config.dropout is not None:
        _set_dropout(model_config, config.dropout)
    model, info = _read_weights(config, model_config, attention_on(device, model_config, config.attn_implementation))
    _require_encoder(config.model_name, model, info)
    name, layer = last_layer(model)
    is_new = any(key.startswith(f"{name}.") for key in (*info["missing_keys"], *info["mismatched_keys"]))
    line, is_kept = _settle_head(layer, () if is_new else head_labels, labels, model_config)
    report(line)
    with torch.no_grad():
        if is_kept and start.problem_type == "regression":  # it answers in the target's unit
            layer.weight /= start.scale
            layer.bias.copy_((layer.bias - start.offset) / start.scale)
        elif not is_kept and start.log_odds is not None and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(start.log_odds))
            report("It begins at the log-odds of the labels in the training rows.")
    keep_logits_precise(model)
    return model


def label_names(model_config: PretrainedConfig) -> tuple[str, ...]:
    """Return the labels of the head, if the weights have one; a hand-written config.json may skip a number."""
    names = model_config.id2label
    return tuple(str(names.get(index, f"LABEL_{index}")) for index in range(len(names)))


def name_labels(model_config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Name the labels of the head, in order."""
    model_config.id2label = dict(enumerate(labels))
    model_config.label2id = {label: index for index, label in enumerate(labels)}


def load_classifier(config: TrainConfig, model_config: PretrainedConfig, flag: str) -> PreTrainedModel:
    """Return a classifier that was trained elsewhere, on the CPU, in float32; `flag` names it in messages.

    Raises:
        InputError: it cannot be found, or its weights are not those that its config.json describes.
    """
    model, info = _read_weights(config, model_config, attention_on(torch.device("cpu"), model_config), flag)
    name = f"{flag} {config.model_name}"
    if others := info["mismatched_keys"]:
        raise InputError(
            f"{name}: {len(others)} weights have other shapes than config.json describes, with its "
            f"{model_config.num_labels} labels ({_few(others)}); restore the config.json that was saved with them"
        )
    if missing := info["missing_keys"]:
        raise InputError(
            f"{name}: {len(missing)} weights are missing from its file ({_few(missing)}), so its answers would be "
            f"random; train it first: rawloop train --model_name {config.model_name}"
        )
    if strange := _unknown_weights(model, info):
        raise InputError(
            f"{name}: its file has {len(strange)} other weights ({_few(strange)}); restore its config.json"
        )
    return model


def _read_weights(
    config: TrainConfig, model_config: PretrainedConfig, attention: str, flag: str = "--model_name"
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """Return a model, and its weights that are missing, of another shape and unknown."""
    source, revision = resolve_model(config.model_name, config.model_revision, flag)
    options = {
        "config": model_config,
        "dtype": torch.float32,  # master weights; autocast casts them to half precision
        "attn_implementation": attention,
        "ignore_mismatched_sizes": True,  # replaces a head for another number of labels
        "output_loading_info": True,
    }
    try:
        if (weights := _unwrapped_weights(Path(source))) is None:
            model, info = AutoModelForSequenceClassification.from_pretrained(source, revision=revision, **options)
        else:
            model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(model_config)]
            model, info = model_class.from_pretrained(None, state_dict=weights, **options)
    except Exception as error:  # damaged files and odd configurations raise many types here
        raise not_found(config, error, flag) from error
    assert isinstance(model, PreTrainedModel)
    return model, {
        kind: sorted(key if isinstance(key, str) else key[0] for key in info[kind])  # transformers 5 adds two shapes
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
    }


def load_finished_model(folder: Path, attention: str | None) -> PreTrainedModel:
    """Return the model of a run's `model/`, in float32; without an attention, with that of transformers.

    Raises:
        InputError: the folder has other weights than a run left there.
    """
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation=attention, output_loading_info=True
    )
    if strange := [key for kind in ("missing_keys", "unexpected_keys") for key in info[kind]]:
        raise InputError(
            f"{folder}: its weights are not those of a finished run ({_few(strange)}); restore them, "
            "or train again from this folder: --model_name"
        )
    assert isinstance(model, PreTrainedModel)
    keep_logits_precise(model)
    return model


class FullPrecisionLinear(nn.Linear):
    """A linear layer that autocast leaves in the precision of its weights."""

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., out] for values [..., in] of any float type."""
        with torch.autocast(values.device.type, enabled=False):
            return functional.linear(values.to(self.weight.dtype), self.weight, self.bias)


def keep_logits_precise(model: PreTrainedModel) -> None:
    """Compute the logits in float32 under autocast.

    Half precision would round logits to 3 digits (bf16): rows tie, and calibration is coarse.
    """
    last_layer(model)[1].__class__ = FullPrecisionLinear


def attention_on(device: torch.device, model_config: PretrainedConfig, requested: str = "auto") -> str:
    """Return the attention to run: torch's fused one on a GPU, where the architecture has it.

    On a CPU it takes a slower path with dropout or a mask: 5 to 15 % of a step. Left to itself, transformers takes
    flash-attn for some models if that is installed, which does not run on the CPU that a model is prepared on.
    """
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model_config), None)
    has_fused = getattr(model_class, "_supports_sdpa", False)
    if requested == "sdpa" and not has_fused:
        raise InputError(
            f"--attn_implementation sdpa: {model_config.model_type} has no such attention; leave it out, or pass eager"
        )
    return requested if requested != "auto" else "sdpa" if device.type != "cpu" and has_fused else "eager"


def last_layer(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the name of the layer that computes the logits, and the layer."""
    encoder = f"{model.base_model_prefix}."
    layers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(encoder)
    ]
    return layers[-1]


def freeze_unused_parameters(model: PreTrainedModel, input_names: Collection[str]) -> None:
    """Freeze parameters that get no gradient (XLNet's `mask_emb`): DDP would wait for it forever.

    They are found by one backward pass over a short row with the inputs of training, the tokenizer's
    `model_input_names`: XLNet uses its segment parameters only with token_type_ids.
    """
    was_training = model.training
    model.eval()
    tokens = torch.full((1, 4), int(model.config.pad_token_id or 0) + 1, device=model.device)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }
    accepted = inspect.signature(model.forward).parameters
    model(**{name: inputs[name] for name in input_names if name in accepted}).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    model.zero_grad(set_to_none=True)
    model.train(was_training)


def _settle_head(
    layer: nn.Linear, head_labels: Sequence[str], labels: tuple[str, ...], model_config: PretrainedConfig
) -> tuple[str, bool]:
    """Put the rows of a loaded head into the order of `labels`, or draw new ones; say what was done, and if it is kept.

    `head_labels` are empty if the head is new already.
    """
    unnamed = tuple(label.removeprefix("LABEL_") for label in head_labels)  # transformers' name of class 3: LABEL_3
    own = unnamed if set(unnamed) == set(labels) else tuple(head_labels)
    if own and set(own) == set(labels):
        order = torch.tensor([own.index(label) for label in labels])
        with torch.no_grad():
            layer.weight.copy_(layer.weight[order])
            if layer.bias is not None:
                layer.bias.copy_(layer.bias[order])
        return f"Head: kept, as it is for the same {len(labels)} labels.", True
    if own:
        nn.init.normal_(layer.weight, std=getattr(model_config, "initializer_range", 0.02))
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        named = _few(own)
        line = f"Head: new; the model's is for other labels ({named}); to keep it, give its config.json your id2label."
        return line, False
    return f"Head: new, for {len(labels)} label{'s' * (len(labels) > 1)}.", False


def _require_encoder(name: str, model: PreTrainedModel, info: dict[str, list[str]]) -> None:
    prefix = f"{model.base_model_prefix}."
    found = {
        "missing from its file": [
            key for key in info["missing_keys"] if key.startswith(prefix) and not key.startswith(prefix + POOLER)
        ],
        "of another shape": [key for key in info["mismatched_keys"] if key.startswith(prefix)],
        "unknown to the model": _unknown_weights(model, info),
    }
    if problems := [f"{len(keys)} {what} ({_few(keys)})" for what, keys in found.items() if keys]:
        raise InputError(
            f"--model_name {name}: the encoder's weights are not those that its config.json describes: "
            f"{'; '.join(problems)}. Training would start from random numbers there: restore the config.json that was "
            "saved with these weights, or save the weights again with save_pretrained"
        )


def _unknown_weights(model: PreTrainedModel, info: dict[str, list[str]]) -> list[str]:
    """Return the weights of a file that belong into the encoder, but are not part of it."""
    encoder, prefix = model.base_model, f"{model.base_model_prefix}."
    parts = {part for part, _ in (*encoder.named_children(), *encoder.named_parameters(recurse=False))}
    buffers = {buffer.rsplit(".", 1)[-1] for buffer, _ in encoder.named_buffers()}  # older files hold position_ids
    paths = {key: key.removeprefix(prefix).split(".") for key in info["unexpected_keys"]}
    return [key for key, path in paths.items() if path[0] in parts - {POOLER} and path[-1] not in buffers]


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NUM_NAMED]) + (", ..." if len(keys) > NUM_NAMED else "")


def _unwrapped_weights(folder: Path) -> dict[str, Tensor] | None:
    """Return the weights of a folder under their own names, if they were saved from within a wrapper."""
    if (file := folder / "model.safetensors").is_file():
        with safe_open(file, "pt") as opened:
            names = opened.keys()
        if not any(map(WRAPPERS.match, names)):
            return None
        loaded = load_file(file)
    elif (file := folder / "pytorch_model.bin").is_file():
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    else:
        return None
    weights = {WRAPPERS.sub("", name): tensor for name, tensor in loaded.items()}
    return None if weights.keys() == loaded.keys() else weights


def _set_dropout(model_config: Any, dropout: float) -> None:
    """Set every dropout probability of a configuration: numbers named `*dropout*`."""
    for name, value in list(vars(model_config).items()):
        if "dropout" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(model_config, name, dropout)
    if hasattr(model_config, "classifier_dropout"):
        model_config.classifier_dropout = dropout
