import dataclasses
from pathlib import Path

import pytest
from tiny_runs import save_tiny_run

from bench.harness.workload import Workload, rows_of_run
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType

ROWS = Workload(origin="here", inputs=tuple(f"text {n}" for n in range(50)), labels=tuple(n % 3 for n in range(50)))


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_texts_with_their_labels() -> None:
    sample = ROWS.sample(20, seed=3)
    assert sample == ROWS.sample(20, seed=3)
    assert sample.inputs != ROWS.sample(20, seed=4).inputs
    assert len(set(sample.inputs)) == 20
    assert all(int(text.split()[1]) % 3 == label for text, label in zip(sample.inputs, sample.labels, strict=True))
    assert ROWS.sample(999, seed=0) is ROWS


def test_the_digest_tells_rows_apart() -> None:
    digests = {
        ROWS.digest,
        ROWS.sample(49, 0).digest,
        dataclasses.replace(ROWS, labels=ROWS.labels[::-1]).digest,
        dataclasses.replace(ROWS, inputs=tuple((text, text) for text in ROWS.inputs)).digest,
        dataclasses.replace(ROWS, inputs=ROWS.inputs[::-1]).digest,
    }
    assert len(digests) == 5
    assert dataclasses.replace(ROWS, origin="elsewhere").digest == ROWS.digest


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_runs_of_several_labels_or_numbers_are_refused(tmp_path: Path, problem_type: ProblemType) -> None:
    run = save_tiny_run(tmp_path / "run", problem_type=problem_type, num_rows=20)
    with pytest.raises(InputError, match=f"sample of run: rows of {problem_type}; name a model and rows with one"):
        rows_of_run(run, "validation")
