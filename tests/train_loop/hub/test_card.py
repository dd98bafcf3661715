import dataclasses

import pytest
from assessed import LABELS, assessed
from huggingface_hub import ModelCard

from train_loop.hub.card import render_model_card


def test_the_hub_reads_the_card() -> None:
    assessment = assessed()
    card = ModelCard(render_model_card(assessment, max_length=128, num_training_rows=45_615, epochs=2.268))
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == assessment.config.model_name
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "accuracy"] == pytest.approx(assessment.metrics["test"].values["accuracy"], abs=1e-6)
    assert "45,615 training rows, 2.27 epochs" in card.text
    assert "truncation=True, max_length=128)" in card.text, "the pipeline does not truncate unasked"
    assert all(label in card.text for label in LABELS)
    table = [line for line in card.text.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 7
    assert "\n".join(table) in card.text, "a blank line would end the table"


def test_the_card_says_what_a_student_learned_from() -> None:
    assessment = assessed()
    assert "taught by" not in render_model_card(assessment, max_length=128, num_training_rows=7, epochs=3.0)
    config = dataclasses.replace(assessment.config, teacher="runs/big", distil_weight=0.9, student_layers=3)
    student = dataclasses.replace(assessment, config=config)
    card = render_model_card(student, max_length=128, num_training_rows=7, num_taught_rows=1_500, epochs=3.0)
    assert "7 training rows and 1,500 that only the teacher labels, 3 epochs" in card
    assert "taught by `runs/big` (0.9 of the loss, temperature 2.0), 3 layers of that model; the best" in card
