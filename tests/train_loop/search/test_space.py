"""The space: what is refused, with the way out, and what is searched by default."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelled_rows import labelled_rows

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.defaults import with_defaults
from train_loop.search.space import Space, read_space
from train_loop.search.trial import load_rows

Read = Callable[..., Space]


@pytest.fixture
def read(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> Read:
    """Return a function: text of a space, or None, and fields of the configuration -> the space."""

    def read_text(text: str | None, rows: Any = None, **fields: Any) -> Space:
        file = write_rows(labelled_rows(60) if rows is None else rows)
        given: dict[str, Any] = {"model_name": str(tiny_model), "train_file": str(file)} | fields
        config = TrainConfig(**given)
        _, data = load_rows(config)
        path = None if text is None else tmp_path / "space.yaml"
        if path is not None:
            path.write_text(str(text))
        return read_space(path, with_defaults(config, data), data)

    return read_text


def test_values_have_the_types_of_their_fields(read: Read) -> None:
    space = read(
        "learning_rate: {low: 1e-5, high: 1e-3, log: true}\nepochs: {low: 1, high: '4'}\ndropout: {choices: [null, 0]}"
    )
    assert space == {
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "epochs": {"low": 1, "high": 4, "log": False},
        "dropout": {"choices": [None, 0.0]},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learning_rat: {low: 1, high: 2}", "learning_rat: no such field; did you mean learning_rate?"),
        ("seed: {low: 1, high: 99}", "seed: not searched; leave it out. What can be: model_name"),
        ("test_fraction: {low: 0, high: 0.5}", "test_fraction: not searched"),
        ("epochs: {low: 1.5, high: 4}", "epochs: Parser key \"epochs\": Expected a <class 'int'>. Got value: 1.5"),
        ("lr_schedule: {choices: [linear, cubic]}", "lr_schedule: Parser key"),
        ("lr_schedule: {low: cosine, high: linear}", "lr_schedule: expected {choices: [a, b]}"),
        ("learning_rate: {low: 1e-3, high: 1e-5}", "learning_rate: expected {choices: [a, b]}"),
        ("weight_decay: {low: 0, high: 0.1, log: true}", "numbers, low above 0 with log, found"),
        ("weight_decay: {low: 0, high: 0.1, log: maybe}", "found {'low': 0, 'high': 0.1, 'log': 'maybe'}"),
        ("weight_decay: {low: 0, high: 0.1, choices: [0, 1]}", "weight_decay: expected"),
        ("weight_decay: {low: 0}", "weight_decay: expected"),
        ("weight_decay: 0.1", "weight_decay: expected {choices: [a, b]}, two or more, or"),
        ("batch_size: {choices: [32]}", "batch_size: expected {choices: [a, b]}, two or more"),
        ("batch_size: {choices: [32, 32]}", "batch_size: expected"),
        ("class_weights: {choices: [none, {good: 2.0}]}", "class_weights: expected"),
        (
            "batch_size: {choices: [8, 16]}",
            "batch_size: add the configuration's own, 32, which is tried first; or pass",
        ),
        ("dropout: {low: 0.0, high: 0.3}", "dropout: add the configuration's own, null"),
        ("learning_rate: {low: 1e-3, high: 1e-2}", "learning_rate: add the configuration's own, 0.0002"),
        ("epochs: {low: 0, high: 3}", "--epochs must be at least 1, found 0 (with epochs 0)"),
        ("loss: {choices: [cross_entropy, mse]}", "--loss mse is for numbers"),
        ("max_length: {choices: [null, 100000]}", "max_length 100000"),
        (
            "long_texts: {choices: [truncate, windows]}\nmax_windows: {low: 8, high: 32}",
            "--max_windows needs --long_texts",
        ),
        ("{}", "no field; write one, or leave out --space"),
        ("- a", "expected `name: value` lines"),
    ],
)
def test_a_space_that_cannot_be_is_refused(read: Read, text: str, problem: str) -> None:
    with pytest.raises(InputError) as refused:
        read(text)
    assert problem in str(refused.value)
    assert "space.yaml: " in str(refused.value)


def test_all_problems_are_named_at_once(read: Read) -> None:
    with pytest.raises(InputError) as refused:
        read("seed: {low: 1, high: 2}\nbatch_size: 3\nlearning_rate: {low: 1e-6, high: 1e-3}")
    assert len(str(refused.value).splitlines()) == 2


def test_the_default_space_has_what_fits_and_the_configurations_own_values(read: Read) -> None:
    space = read(None, learning_rate=1e-3, batch_size=24, epochs=9)
    usual = ["learning_rate", "layer_decay", "batch_size", "epochs", "warmup_ratio", "weight_decay", "label_smoothing"]
    assert [*space] == usual
    assert space["learning_rate"] == {"low": 1e-5, "high": 1e-3, "log": True}
    assert space["batch_size"] == {"choices": [16, 32, 64, 24]}
    assert (space["epochs"]["low"], space["epochs"]["high"]) == (2, 9)
    assert "epochs" not in read(None, max_steps=50)
    imbalanced = [row for row in labelled_rows(80) if row[1] == "good"] + labelled_rows(20)
    assert read(None, imbalanced)["class_weights"] == {"choices": ["none", "sqrt", "balanced"]}
    numbers = [(text, str(number % 7)) for number, (text, _) in enumerate(labelled_rows(60))]
    assert not {"label_smoothing", "class_weights"} & {*read(None, numbers, problem_type="regression")}
