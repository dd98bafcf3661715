"""Run directories of tiny random models, with what export needs: model/ and samples/."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tiny_models import MAX_POSITIONS, WORDS, save_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serve.contract.classifier import Classifier, write_classifier
from serve.contract.decision import Decision
from serve.contract.labels import ProblemType
from train_loop.model.weights import last_layer

LABELS = ("bad", "good")
LABELS_OF: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": LABELS,
    "multi_label_classification": ("angry", "happy", "sad"),
    "regression": ("stars",),
}
DECISIONS: dict[ProblemType, Decision] = {
    "single_label_classification": Decision(),
    "multi_label_classification": Decision(threshold="f1", thresholds=(0.4, 0.5, 0.52)),
    "regression": Decision(),
}


def text_of(number: int) -> str:
    """Return a text of 1 to 20 words."""
    return " ".join(WORDS[(number * 7 + place * 13) % len(WORDS)] for place in range(1 + (number * 5) % 20))


def answer_of(number: int, problem_type: ProblemType) -> str | list[str] | float:
    """Return the true answer to a text, as it stands in a column of labels."""
    labels = LABELS_OF[problem_type]
    if problem_type == "regression":
        return number % 11 / 2
    if problem_type == "multi_label_classification":
        return [label for place, label in enumerate(labels) if number % (place + 2) == 0]
    return labels[number % 2]


def _spread_out(model: Path, problem_type: ProblemType) -> None:
    """Set the label names and kind of a random model, and larger weights, so that texts get different answers."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    torch.manual_seed(1)
    for parameter in loaded.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter.data, std=0.4)
    if problem_type != "single_label_classification":  # whose config.json need not say so
        loaded.config.problem_type = problem_type
        texts = [text_of(number) for number in range(60)]
        with torch.no_grad():
            encoded = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
            last_layer(loaded)[1].bias -= loaded.eval()(**encoded).logits.mean(dim=0)  # each label is some texts'
    labels = LABELS_OF[problem_type]
    loaded.config.id2label = dict(enumerate(labels))
    loaded.config.label2id = {label: index for index, label in enumerate(labels)}
    loaded.save_pretrained(model)


def save_tiny_run(
    folder: Path,
    architecture: str = "bert",
    *,
    pairs: bool = False,
    num_rows: int = 60,
    problem_type: ProblemType = "single_label_classification",
) -> Path:
    """Save a tiny run and return its folder."""
    labels = LABELS_OF[problem_type]
    model = save_tiny_model(folder / "model", architecture, num_labels=len(labels))
    _spread_out(model, problem_type)
    max_length = MAX_POSITIONS - 8
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.backend_tokenizer.enable_truncation(max_length)
    tokenizer.save_pretrained(model)
    classifier = Classifier(
        name="tiny",
        labels=labels,
        text_column="text",
        text_pair_column="text_pair" if pairs else None,
        max_length=max_length,
        padding_side="left" if architecture == "xlnet" else "right",
        temperature=1.0 if problem_type == "regression" else 1.5,
        problem_type=problem_type,
        decision=DECISIONS[problem_type],
        metrics={"validation": {"accuracy": 0.5, "macro_f1": 0.5}},
    )
    write_classifier(model, classifier)
    (folder / "samples").mkdir()
    for name, first in (("train", 0), ("validation", num_rows)):
        numbers = range(first, first + num_rows)
        columns = {"text": [text_of(number) for number in numbers]}
        if pairs:
            columns["text_pair"] = [text_of(number + 3) for number in numbers]
        columns["label"] = [answer_of(number, problem_type) for number in numbers]
        pq.write_table(pa.table(columns), folder / "samples" / f"{name}.parquet")
    return folder
