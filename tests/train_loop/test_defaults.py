from pathlib import Path

import pytest
from transformers import BertConfig, DistilBertConfig, XLNetConfig

from serve.contract.labels import ProblemType
from train_loop.config import TrainConfig
from train_loop.defaults import with_defaults


@pytest.mark.parametrize(
    ("model_config", "rate"),
    [
        (BertConfig(hidden_size=768), 5e-5),
        (BertConfig(hidden_size=1024), 2.8e-5),
        (DistilBertConfig(dim=768), 5e-5),
        (XLNetConfig(d_model=512, n_head=8), 1.1e-4),
        (BertConfig(hidden_size=384), 2e-4),
        (BertConfig(hidden_size=128), 2e-4),
    ],
    ids=["base", "large", "distilbert", "xlnet", "minilm", "tiny"],
)
def test_the_learning_rate_is_higher_for_a_narrow_model(model_config: BertConfig, rate: float, tmp_path: Path) -> None:
    model_config.save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path))
    assert with_defaults(config, "single_label_classification", 100).learning_rate == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(
    ("problem_type", "hidden_size", "num_rows", "rate"),
    [
        ("single_label_classification", 384, 10_600, 2e-4),
        ("single_label_classification", 384, 21_333, 1e-4),
        ("single_label_classification", 384, 45_615, 5e-5),
        ("single_label_classification", 384, 10_000_000, 5e-5),
        ("single_label_classification", 768, 45_615, 5e-5),
        ("single_label_classification", 1024, 45_615, 2.8e-5),
        ("multi_label_classification", 384, 45_615, 2e-4),
    ],
)
def test_the_rate_of_a_narrow_model_is_lower_for_many_steps_of_one_label(
    problem_type: ProblemType, hidden_size: int, num_rows: int, rate: float, tmp_path: Path
) -> None:
    BertConfig(hidden_size=hidden_size, num_attention_heads=8).save_pretrained(tmp_path)
    config = TrainConfig(train_file="a.csv", model_name=str(tmp_path), epochs=3, batch_size=32)
    assert with_defaults(config, problem_type, num_rows).learning_rate == pytest.approx(rate, rel=0.03)


def test_a_learning_rate_that_was_asked_for_is_kept() -> None:
    config = TrainConfig(train_file="a.csv", model_name="no/such-model", learning_rate=1e-5)
    assert with_defaults(config, "single_label_classification", 100).learning_rate == 1e-5
