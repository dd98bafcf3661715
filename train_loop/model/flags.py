"""The flags of every command that takes a classifier that was trained elsewhere."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from serve.contract.classifier import Side
from serve.contract.errors import InputError
from train_loop.config import TrainConfig

OF_THE_MODEL = ("revision", "label_names", "max_length", "padding_side")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """A classifier that was trained elsewhere, what its files do not say, and the columns of its rows."""

    model: str | None = None
    """Folder or Hub id of a classifier that was trained elsewhere, instead of a run."""
    revision: str | None = None
    """Branch, tag or commit of --model on the Hub."""
    label_names: list[str] | None = None
    """Labels of --model in the order of the logits; null takes config.json's."""
    max_length: int | None = None
    """Longest input of --model [tokens]; null takes the longest it takes."""
    padding_side: Side | None = None
    """Side on which --model wants its padding; null takes the tokenizer's."""
    text_column: str = "text"
    """Column of the text, in the rows for --model."""
    text_pair_column: str | None = None
    """Column of the second text of a pair."""
    label_column: str = "label"
    """Column of the label, as the model names it or as a number."""
    delimiter: str | None = None
    """Between the fields of csv or tsv; null takes the format's."""

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Add those of the model to a command's flags, but for --model."""
        group = parser.add_argument_group("for --model", "what its files do not say, or say wrongly")
        group.add_argument("--revision", help="branch, tag or commit on the Hub")
        group.add_argument(
            "--label_names", nargs="+", help="labels in the order of the logits (default: config.json's)"
        )
        group.add_argument("--max_length", type=int, help="longest input in tokens (default: the longest it takes)")
        group.add_argument("--padding_side", choices=("left", "right"), help="default: the tokenizer's")

    @staticmethod
    def refuse_for_run(flags: Any) -> None:
        """Raise InputError for flags of a model that are given where a run is named."""
        if given := [f"--{name}" for name in OF_THE_MODEL if getattr(flags, name) is not None]:
            raise InputError(f"{', '.join(given)}: for --model only; a run's are in its model/classifier.json")

    @classmethod
    def of(cls, flags: Any) -> "ModelFlags":
        """Return the given ones of a command's flags, which have the same names."""
        given = {field.name: getattr(flags, field.name) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    def config(self, rows: Path, **more: Any) -> TrainConfig:
        """Return the configuration that stands for the model's own; `more` fields win.

        Raises:
            InputError: flags contradict each other.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ModelFlags)}  # not a subclass's
        del fields["padding_side"]  # of the tokenizer
        fields |= {"model_name": fields.pop("model"), "model_revision": fields.pop("revision")}
        return TrainConfig(**fields | {"train_file": str(rows)} | more)
