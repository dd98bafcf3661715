"""What follows from what is learned: the loss and metric of a run, and the options that have an effect."""

import dataclasses
import math

from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from train_loop.config import MetricName, TrainConfig
from train_loop.model.pretrained import load_model_config
from train_loop.rows.data import Data

USUAL_RATE, USUAL_SIZE, MOST_RATE = 5e-5, 768, 2e-4
"""Learning rate for BERT's hidden size; a narrower model's is higher, up to MiniLM's (docs/TRAINING.md)."""
STEPS_AT_FULL_RATE = 700
"""Steps up to which a narrow model has the higher rate in full, where a row has one label; beyond, it falls."""
LAYER_DECAY, RATE_OF_TOP, FEW_LABELS = 0.8, 2.5, 3
"""While that rate is above the usual one: each layer's share of the one above, the head's factor for more labels."""
AVERAGES: tuple[MetricName, ...] = ("macro_f1", "weighted_f1", "macro_precision", "macro_recall", "loss")
METRICS: dict[ProblemType, tuple[MetricName, ...]] = {
    "single_label_classification": (*AVERAGES, "accuracy", "balanced_accuracy"),
    "multi_label_classification": (
        "average_precision",
        "label_ranking_average_precision",
        "micro_f1",
        "samples_f1",
        "subset_accuracy",
        *AVERAGES,
    ),
    "regression": ("r2", "spearman", "pearson", "rmse", "mae", "loss"),
}
"""Those that can select the best model; the first does unless another is asked for."""
WORDS: dict[ProblemType, str] = {
    "single_label_classification": "one label",
    "multi_label_classification": "several labels",
    "regression": "numbers",
}
ONLY_FOR: dict[str, tuple[ProblemType, ...]] = {
    "abstain": ("single_label_classification",),
    "threshold": ("multi_label_classification",),
    "threshold_scope": ("multi_label_classification",),
    "window_pooling": ("multi_label_classification",),
    "class_weights": ("single_label_classification", "multi_label_classification"),
    "label_smoothing": ("single_label_classification", "multi_label_classification"),
    "label_names": ("single_label_classification", "multi_label_classification"),
}
"""Field -> what it has an effect on."""


def with_defaults(config: TrainConfig, data: Data) -> TrainConfig:
    """Return a configuration with loss, metric and learning rates that suit the model and what it learns from.

    Raises:
        InputError: its own do not suit.
    """
    problem_type = data.problem_type
    usual = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    for name, kinds in ONLY_FOR.items():
        if problem_type not in kinds and getattr(config, name) != usual[name]:
            needed = " or ".join(WORDS[kind] for kind in kinds)
            raise InputError(f"--{name} is for rows with {needed}, and these have {WORDS[problem_type]}; leave it out")
    own = METRICS[problem_type]
    if config.metric_for_best not in (None, *own):
        raise InputError(
            f"--metric_for_best {config.metric_for_best}: no metric of rows with {WORDS[problem_type]}; choose one of "
            f"{', '.join(own)}"
        )
    loss = config.loss or ("mse" if problem_type == "regression" else "cross_entropy")
    metric, rate, decay = config.metric_for_best or own[0], config.learning_rate, config.layer_decay
    if rate is None:
        rate, decay = _usual_rate(config, data)
    return dataclasses.replace(config, loss=loss, metric_for_best=metric, learning_rate=rate, layer_decay=decay or 1.0)


def _usual_rate(config: TrainConfig, data: Data) -> tuple[float, float]:
    """Return the learning rate of a model of this width, for this many steps, and the decay by layer it goes with."""
    rate = USUAL_RATE * (USUAL_SIZE / getattr(load_model_config(config), "hidden_size", USUAL_SIZE)) ** 2
    rate, decay = min(MOST_RATE, rate), config.layer_decay or 1.0
    if rate > USUAL_RATE and data.problem_type == "single_label_classification":
        rate = max(USUAL_RATE, rate * min(1.0, STEPS_AT_FULL_RATE / num_steps_of(config, data)))
        if rate > USUAL_RATE and config.layer_decay != 1.0:
            rate *= RATE_OF_TOP if len(data.labels) > FEW_LABELS else 1.0
            decay = config.layer_decay or LAYER_DECAY
    return float(f"{rate:.1g}"), decay


def num_steps_of(config: TrainConfig, data: Data) -> int:
    """Return the optimizer steps of a run."""
    num_steps = config.epochs * math.ceil(len(data.learned) / config.batch_size)
    return min(num_steps, config.max_steps or num_steps)
