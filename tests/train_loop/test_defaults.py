from pathlib import Path

import pytest
from transformers import BertConfig, DistilBertConfig, XLNetConfig

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
    assert with_defaults(config, "single_label_classification").learning_rate == pytest.approx(rate, rel=0.03)


def test_a_learning_rate_that_was_asked_for_is_kept() -> None:
    config = TrainConfig(train_file="a.csv", model_name="no/such-model", learning_rate=1e-5)
    assert with_defaults(config, "single_label_classification").learning_rate == 1e-5
