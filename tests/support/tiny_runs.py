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
NUM_STEPS = 100  # of a model that learns
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


def _answer_to_learn(number: int) -> str:
    """Return by which half of the words a text's first word is in."""
    return LABELS[WORDS.index(text_of(number).split()[0]) < len(WORDS) // 2]


def _spread_out(model: Path, problem_type: ProblemType) -> None:
    """Set the label names and kind of a random model, and larger weights, so that texts get different answers."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    torch.manual_seed(1)
    for parameter in loaded.parameters():
        if parameter.dim() >= 2:  # 3 in XLNet's attention
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


def _teach(model: Path, num_rows: int) -> None:
    """Train a model on its run's training rows, so that its logits are as far apart as a trained one's.

    In float64, so that other processors and numbers of threads train the same model.
    """
    loaded = AutoModelForSequenceClassification.from_pretrained(model).double()
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = tokenizer([text_of(number) for number in range(num_rows)], padding=True, return_tensors="pt")
    labels = torch.tensor([LABELS.index(_answer_to_learn(number)) for number in range(num_rows)])
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=5e-3)
    loaded.train()
    for _ in range(NUM_STEPS):
        rows = torch.randperm(num_rows)[:64]
        loss = loaded(**{name: values[rows] for name, values in encoded.items()}, labels=labels[rows]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.float().save_pretrained(model)


def save_tiny_run(
    folder: Path,
    architecture: str = "bert",
    *,
    pairs: bool = False,
    num_rows: int = 60,
    problem_type: ProblemType = "single_label_classification",
    learned: bool = False,
) -> Path:
    """Save a tiny run and return its folder.

    A random model gives many texts almost equal logits, or all one label; one that has `learned` an answer does not.
    """
    labels = LABELS_OF[problem_type]
    model = save_tiny_model(folder / "model", architecture, num_labels=len(labels))
    _spread_out(model, problem_type)
    if learned:
        _teach(model, num_rows)
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
        columns["label"] = [
            _answer_to_learn(number) if learned else answer_of(number, problem_type) for number in numbers
        ]
        pq.write_table(pa.table(columns), folder / "samples" / f"{name}.parquet")
    return folder
