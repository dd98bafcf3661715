"""Tiny random classifiers that give texts clearly different answers, as teachers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_models import save_tiny_model
from transformers import AutoModelForSequenceClassification


def save_teacher(
    folder: Path,
    labels: Sequence[str],
    *,
    architecture: str = "distilbert",
    problem_type: str = "single_label_classification",
    seed: int = 1,
) -> Path:
    """Save a teacher of labels, and return its folder."""
    save_tiny_model(folder, architecture, num_labels=len(labels))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter.data, std=0.4)
    model.config.problem_type = problem_type
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: index for index, label in enumerate(labels)}
    model.save_pretrained(folder)
    return folder
