from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import BertConfig, DistilBertConfig, XLNetConfig

from serve.contract.labels import ProblemType
from train_loop.config import TrainConfig
from train_loop.defaults import with_defaults
from train_loop.rows.data import Data


def rows(problem_type: ProblemType = "single_label_classification", num_rows: int = 100, num_labels: int = 4) -> Data:
    """Return what of the rows decides about defaults."""
    stand_in = SimpleNamespace(
        problem_type=problem_type, learned=range(num_rows), labels=tuple(map(str, range(num_labels)))
    )
    return cast(Data, stand_in)


@pytest.mark.parametrize(
    ("model_config", "rate"),
    [
        (BertConfig(hidden_size=768), 5e-5),
        (BertConfig(hidden_size=1024), 3e-5),
        (DistilBertConfig(dim=768), 5e-5),
        (XLNetConfig(d_model=512, n_head=8), 3e-4),
        (BertConfig(hidden_size=384), 5e-4),
        (BertConfig(hidden_size=128), 5e-4),
    ],
    ids=["base", "large", "distilbert", "xlnet", "minilm", "tiny"],
)
def test_the_learning_rate_is_higher_for_a_narrow_model(model_config: BertConfig, rate: float, tmp_path: Path) -> None:
    model_config.save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path))
    assert with_defaults(config, rows()).learning_rate == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(
    ("problem_type", "hidden_size", "num_rows", "found"),
    [
        ("single_label_classification", 384, 7_000, (5e-4, 0.8)),
        ("single_label_classification", 384, 9_003, (4e-4, 0.8)),
        ("single_label_classification", 384, 29_000, (1e-4, 0.8)),
        ("single_label_classification", 384, 45_615, (5e-5, 1.0)),
        ("single_label_classification", 384, 10_000_000, (5e-5, 1.0)),
        ("single_label_classification", 768, 45_615, (5e-5, 1.0)),
        ("single_label_classification", 1024, 45_615, (3e-5, 1.0)),
        ("multi_label_classification", 384, 45_615, (2e-4, 1.0)),
    ],
)
def test_the_rate_of_a_narrow_model_is_lower_for_many_steps_of_one_label(
    problem_type: ProblemType, hidden_size: int, num_rows: int, found: tuple[float, float], tmp_path: Path
) -> None:
    BertConfig(hidden_size=hidden_size, num_attention_heads=8).save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path), epochs=3, batch_size=32)
    filled = with_defaults(config, rows(problem_type, num_rows))
    assert (filled.learning_rate, filled.layer_decay) == found


@pytest.mark.parametrize(("max_steps", "rate"), [(2_000, 2e-4), (100_000, 1e-4)])
def test_the_rate_is_that_of_the_steps_that_are_made(max_steps: int, rate: float, tmp_path: Path) -> None:
    """Of 29,000 rows in batches of 32, three epochs are 2,721 steps, whatever more is allowed."""
    BertConfig(hidden_size=384, num_attention_heads=8).save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path), max_steps=max_steps)
    assert with_defaults(config, rows(num_rows=29_000)).learning_rate == rate


@pytest.mark.parametrize(
    ("hidden_size", "problem_type", "num_labels", "asked", "found"),
    [
        (384, "single_label_classification", 4, None, (5e-4, 0.8)),
        (384, "single_label_classification", 3, None, (2e-4, 0.8)),
        (384, "single_label_classification", 4, 0.9, (5e-4, 0.9)),
        (384, "single_label_classification", 4, 1.0, (2e-4, 1.0)),
        (384, "multi_label_classification", 4, None, (2e-4, 1.0)),
        (384, "multi_label_classification", 4, 0.9, (2e-4, 0.9)),
        (384, "regression", 1, None, (2e-4, 1.0)),
        (768, "single_label_classification", 4, None, (5e-5, 1.0)),
        (768, "single_label_classification", 4, 0.9, (5e-5, 0.9)),
    ],
)
def test_layers_of_a_narrow_model_have_rates_of_their_own_for_one_label(
    hidden_size: int,
    problem_type: ProblemType,
    num_labels: int,
    asked: float | None,
    found: tuple[float, float],
    tmp_path: Path,
) -> None:
    BertConfig(hidden_size=hidden_size, num_attention_heads=8).save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path), layer_decay=asked, problem_type=problem_type)
    filled = with_defaults(config, rows(problem_type, num_labels=num_labels))
    assert (filled.learning_rate, filled.layer_decay) == found


@pytest.mark.parametrize(("asked", "decay"), [(None, 1.0), (0.7, 0.7)])
def test_a_learning_rate_that_was_asked_for_is_kept_for_every_layer(asked: float | None, decay: float) -> None:
    config = TrainConfig(train_file="a.csv", model_name="no/such-model", learning_rate=1e-5, layer_decay=asked)
    found = with_defaults(config, rows())
    assert (found.learning_rate, found.layer_decay) == (1e-5, decay)
