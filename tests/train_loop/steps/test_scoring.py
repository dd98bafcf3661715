"""Logits of a split: one step built ahead, copied to the host once a step, in halves if memory runs out."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from held_out import split_of
from numpy.typing import NDArray
from tiny_models import MAX_POSITIONS, WORDS, save_tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from train_loop.rows.split import Split
from train_loop.steps import scoring
from train_loop.steps.feed import Collator, StepFeed
from train_loop.steps.plan import evaluation_plan

ROWS_PER_STEP = 16


@pytest.fixture
def model(tmp_path: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(save_tiny_model(tmp_path), attn_implementation="eager")


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Return 50 rows, to be scored in four steps of several micro-batches."""
    monkeypatch.setattr(
        scoring, "evaluation_plan", lambda *given, **options: evaluation_plan(*given, **options, rows_per_step=16)
    )
    lengths = np.random.default_rng(0).integers(1, 20, 50)
    return split_of([" ".join(WORDS[:length]) for length in lengths], [0] * 50)


def logits_of(model: PreTrainedModel, split: Split, max_tokens: int = 60) -> NDArray[np.float32]:
    collate = Collator(split, tiny_tokenizer(), MAX_POSITIONS)
    return scoring.predict_logits(Accelerator(cpu=True), model, 2, collate, max_tokens)


def row_by_row(model: PreTrainedModel, split: Split) -> NDArray[np.float32]:
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(input_ids=torch.tensor([ids])).logits for ids in split.tokens["input_ids"]])


def test_logits_come_in_the_order_of_the_rows(model: PreTrainedModel, split: Split) -> None:
    np.testing.assert_allclose(logits_of(model, split), row_by_row(model, split), atol=1e-5)


def test_a_pass_that_does_not_fit_is_run_in_halves(
    model: PreTrainedModel, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, forward, sizes = row_by_row(model, split), model.forward, []

    def limited(**inputs: Any) -> Any:
        sizes.append(inputs["input_ids"].numel())
        if inputs["input_ids"].numel() > 25 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", limited)
    np.testing.assert_allclose(logits_of(model, split), expected, atol=1e-5)
    assert max(sizes) > 25


def test_logits_are_fetched_once_a_step_and_a_step_late(
    model: PreTrainedModel, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is never without work because the host reads results: the next step is launched first."""
    events: list[str] = []
    forward, array = model.forward, scoring.HostCopy.array

    def passed(**inputs: Any) -> Any:
        events.append("pass")
        return forward(**inputs)

    def read(copy: scoring.HostCopy) -> NDArray[np.float32]:
        events.append("read")
        return array(copy)

    monkeypatch.setattr(model, "forward", passed)
    monkeypatch.setattr(scoring.HostCopy, "array", read)
    logits_of(model, split)
    lengths = Collator(split, tiny_tokenizer(), MAX_POSITIONS).widths
    steps = evaluation_plan(lengths, num_processes=1, max_tokens=60, rows_per_step=ROWS_PER_STEP)
    passes = [step.num_micro_batches for step in steps]
    assert len(passes) == 4
    expected = ["pass"] * passes[0]
    for number in passes[1:]:
        expected += ["pass"] * number + ["read"]
    assert events == [*expected, "read"]


def test_the_next_step_is_built_while_the_model_runs(
    model: PreTrainedModel, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, forward = StepFeed.build, model.forward
    built: list[str] = []
    second = threading.Event()

    def watched(feed: StepFeed, step_plan: Any) -> Any:
        built.append(threading.current_thread().name.partition("_")[0])
        if len(built) == 2:
            second.set()
        return build(feed, step_plan)

    def waiting(**inputs: Any) -> Any:
        assert second.wait(timeout=10)
        return forward(**inputs)

    monkeypatch.setattr(StepFeed, "build", watched)
    monkeypatch.setattr(model, "forward", waiting)
    logits_of(model, split)
    assert built == ["MainThread", *["rawloop-feed"] * 3]
