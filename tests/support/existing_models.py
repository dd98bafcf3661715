"""Tiny classifiers as transformers users save them, and rows labelled by their own answers."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import save_tiny_model
from tiny_runs import text_of
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from train_loop.model.weights import last_layer

LABELS = ("positive", "neutral", "negative")


def save_existing_model(folder: Path, architecture: str = "bert", labels: Sequence[str] = LABELS) -> Path:
    """Save a random classifier whose answers vary with the text, without anything of rawloop's."""
    save_tiny_model(folder, architecture)
    config = AutoConfig.from_pretrained(folder, id2label=dict(enumerate(labels)))
    config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:  # 3 in XLNet's attention
            torch.nn.init.normal_(parameter.data, std=0.4)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(**tokenizer([text_of(n) for n in range(60)], padding=True, return_tensors="pt")).logits
        head = last_layer(model)[1]
        head.bias -= logits.mean(dim=0)  # so that each label is some texts'
    model.save_pretrained(folder)
    return folder


def write_answered_rows(file: Path, model: Path, num_rows: int = 120, *, pairs: bool = False, first: int = 0) -> Path:
    """Write rows with the labels that a model gives them."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
    texts = [text_of(number) + f" w{number % 60}" for number in range(first, first + num_rows)]
    columns = [texts, [text_of(number + 3) for number in range(num_rows)]][: 1 + pairs]
    encoded = tokenizer(*columns, padding=True, return_tensors="pt")
    with torch.inference_mode():
        answers = loaded(**encoded).logits.argmax(dim=1).tolist()
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", *(["text_pair"] if pairs else []), "label"])
        writer.writerows(zip(*columns, (loaded.config.id2label[answer] for answer in answers), strict=True))
    return file


def change_config(folder: Path, **changes: Any) -> None:
    """Change config.json; None removes a field."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}), encoding="utf-8")
