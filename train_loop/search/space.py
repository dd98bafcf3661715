"""What is searched: field of the configuration -> {low, high, log} or {choices}, checked before anything trains."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serve.contract.errors import InputError
from train_loop.command_line import read_yaml, typed_fields
from train_loop.config import TrainConfig
from train_loop.defaults import ONLY_FOR, with_defaults
from train_loop.model.pretrained import load_tokenizer
from train_loop.rows.data import Data, class_counts

Space = dict[str, dict[str, Any]]
SEARCHABLE = (
    *("model_name", "cleaning", "max_length", "long_texts", "head_tokens", "window_stride", "max_windows", "epochs"),
    *("max_steps", "batch_size", "length_grouping", "early_stopping_patience", "learning_rate", "layer_decay"),
    *("lr_schedule", "warmup_ratio", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("loss", "focal_gamma", "class_weights", "label_smoothing", "dropout", "distil_weight", "distil_temperature"),
)
"""Fields that change what is learned, but neither the rows nor how they are judged. Not the seed: its best is luck."""
IMBALANCED = 1.5  # times as many rows of one label as of another, from which class weights are searched
MAX_COMBINED = 2_000  # combinations of values that are tried for contradictions
FORMS = "{choices: [a, b]}, two or more, or {low: 1, high: 9, log: true}: numbers, low above 0 with log"


def read_space(path: Path | None, config: TrainConfig, data: Data) -> Space:
    """Return the space of a YAML file, or the default one.

    Raises:
        InputError: a field cannot be searched, its values have another type or contradict each other or another
            field's, or they lack the configuration's own.
    """
    where, space, problems = "" if path is None else f"{path}: ", {}, []
    for name, given in (dict(_default_space(config, data)) if path is None else read_yaml(path)).items():
        try:
            space[name] = _checked(name, given, config, where)
        except InputError as error:
            problems.append(str(error))
    if problems or not space:
        raise InputError("\n".join(problems) or f"{where}no field; write one, or leave out --space")
    _require_compatible(space, config, data, where)
    return space


def _default_space(config: TrainConfig, data: Data) -> Iterator[tuple[str, dict[str, Any]]]:
    counts = [1] if data.problem_type == "regression" else class_counts(data.train, data.labels).tolist()
    is_balanced = max(counts) <= IMBALANCED * max(1, min(counts)) or isinstance(config.class_weights, dict)
    idle = {"epochs": config.max_steps is not None, "class_weights": is_balanced}
    for name, given in read_yaml(Path(__file__).with_name("space.yaml")).items():
        own = getattr(config, name)
        if data.problem_type in ONLY_FOR.get(name, [data.problem_type]) and not idle.get(name):
            if "choices" in given:
                yield name, {"choices": list(dict.fromkeys([*given["choices"], own]))}
            else:
                yield name, given | {"low": min(own, given["low"]), "high": max(own, given["high"])}


def _checked(name: str, given: Any, config: TrainConfig, where: str) -> dict[str, Any]:
    own, where = typed_fields({name: getattr(config, name, None)}, where)[name], f"{where}{name}: "
    if name not in SEARCHABLE:
        raise InputError(f"{where}not searched; leave it out. What can be: {', '.join(SEARCHABLE)}")
    match given:
        case {"low": low, "high": high, **rest} if rest in ({}, {"log": True}, {"log": False}):
            ends = [low, high]
        case {"choices": [*choices], **rest} if not rest:
            ends = choices
        case _:
            ends = []
    values = [typed_fields({name: value}, where)[name] for value in ends]
    is_valid = len(set(map(repr, values))) == len(values) > 1 and not any(isinstance(value, dict) for value in values)
    if is_valid and "low" in given:
        is_valid = all(isinstance(value, int | float) for value in values) and values[0] < values[1]
        is_valid = is_valid and (values[0] > 0 or not given.get("log"))
    if not is_valid:
        raise InputError(f"{where}expected {FORMS}, found {given}")
    if not (own in values if "choices" in given else own is not None and values[0] <= own <= values[1]):
        own = "null" if own is None else own
        raise InputError(f"{where}add the configuration's own, {own}, which is tried first; or pass another --{name}")
    return {"choices": values} if "choices" in given else {"log": False} | given | {"low": values[0], "high": values[1]}


def _require_compatible(space: Space, config: TrainConfig, data: Data, where: str) -> None:
    ends, models = [each.get("choices") or (each["low"], each["high"]) for each in space.values()], set()
    for values in itertools.islice(itertools.product(*ends), MAX_COMBINED):
        given = dict(zip(space, values, strict=True))
        try:
            tried = with_defaults(dataclasses.replace(config, **given), data)
            if (model := (tried.model_name, tried.max_length)) not in models:
                load_tokenizer(tried)
                models.add(model)
        except InputError as error:
            raise InputError(f"{where}{error} (with {shown(given)})") from None


def shown(values: dict[str, Any]) -> str:
    """Return values by name, as text."""
    return ", ".join(
        f"{name} {each:.3g}" if isinstance(each, float) else f"{name} {each}" for name, each in values.items()
    )
