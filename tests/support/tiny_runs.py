"""Run directories of tiny random models, with what export needs: model/ and samples/."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny_models import MAX_POSITIONS, WORDS, save_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serve.contract.classifier import Classifier, write_classifier

LABELS = ("bad", "good")


def text_of(number: int) -> str:
    """Return a text of 1 to 20 words."""
    return " ".join(WORDS[(number * 7 + place * 13) % len(WORDS)] for place in range(1 + (number * 5) % 20))


def _spread_out(model: Path) -> None:
    """Set the label names of a random model, and larger weights, so that texts get different answers."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    torch.manual_seed(1)
    for parameter in loaded.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter.data, std=0.4)
    loaded.config.id2label = dict(enumerate(LABELS))
    loaded.config.label2id = {label: index for index, label in enumerate(LABELS)}
    loaded.save_pretrained(model)


def save_tiny_run(folder: Path, architecture: str = "bert", *, pairs: bool = False, num_rows: int = 60) -> Path:
    """Save a tiny run and return its folder."""
    model = save_tiny_model(folder / "model", architecture)
    _spread_out(model)
    max_length = MAX_POSITIONS - 8
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.enable_truncation(max_length)
    tokenizer.save_pretrained(model)
    classifier = Classifier(
        name="tiny",
        labels=LABELS,
        text_column="text",
        text_pair_column="text_pair" if pairs else None,
        max_length=max_length,
        padding_side="left" if architecture == "xlnet" else "right",
        temperature=1.5,
        metrics={"validation": {"accuracy": 0.5, "macro_f1": 0.5}},
    )
    write_classifier(model, classifier)
    (folder / "samples").mkdir()
    for name, first in (("train", 0), ("validation", num_rows)):
        numbers = range(first, first + num_rows)
        columns = {"text": [text_of(number) for number in numbers]}
        if pairs:
            columns["text_pair"] = [text_of(number + 3) for number in numbers]
        columns["label"] = [LABELS[number % 2] for number in numbers]
        pq.write_table(pa.table(columns), folder / "samples" / f"{name}.parquet")
    return folder
