import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from assessed import LABELS, assessed
from huggingface_hub import ModelCard

from train_loop.model.card import push_to_hub, render_model_card


def test_the_hub_reads_the_card() -> None:
    assessment = assessed()
    card = ModelCard(render_model_card(assessment, 128, 45_615))
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == assessment.config.model_name
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "accuracy"] == pytest.approx(assessment.metrics["test"].values["accuracy"], abs=1e-6)
    assert "45,615 training rows" in card.text
    assert all(label in card.text for label in LABELS)
    table = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 7
    assert "\n".join(table) in card.text, "a blank line would end the table"


def test_the_card_says_what_a_student_learned_from() -> None:
    assessment = assessed()
    assert "taught by" not in render_model_card(assessment, 128, 7)
    config = dataclasses.replace(assessment.config, teacher="runs/big", distil_weight=0.9, student_layers=3)
    card = render_model_card(dataclasses.replace(assessment, config=config), 128, 7)
    assert "taught by `runs/big` (0.9 of the loss, temperature 2.0), 3 layers of that model; the best" in card


class Hub:
    """A fake of the Hub's client that records uploads."""

    uploads: list[dict[str, Any]]
    error: Exception | None = None

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> SimpleNamespace:
        assert private
        assert exist_ok
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **arguments: Any) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        self.uploads.append(arguments)
        return SimpleNamespace(commit_url="the commit")


@pytest.mark.parametrize("error", [None, OSError("no network\nlong story"), ValueError("")])
def test_the_folder_is_uploaded_or_the_command_to_do_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    hub, messages = Hub(), []
    hub.uploads, hub.error = [], error
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert push_to_hub(tmp_path, "model", messages.append) == (error is None)
    if error is None:
        assert hub.uploads[0]["folder_path"] == tmp_path
        assert hub.uploads[0]["repo_id"] == "me/model"
        assert messages == ["Uploaded: the commit"]
    else:
        assert f"hf upload model {tmp_path}" in messages[0]
        assert "long story" not in messages[0]
