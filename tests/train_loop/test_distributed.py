"""Promises T1, T2, T4, T5 and T6, on one, two and three gloo processes."""

import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import on_processes
from labelled_rows import labelled_rows
from teachers import save_teacher
from tiny_models import save_tiny_model

from train_loop.machine import processes

NUM_ROWS, BATCH_SIZE, NUM_STEPS = 37, 8, 5  # the last step is short: 5 rows
CUTS = [
    ["--gradient_accumulation_steps", "1"],
    ["--gradient_accumulation_steps", "2"],
    ["--gradient_accumulation_steps", "8"],
    ["--max_tokens_per_forward", "24"],
    ["--max_tokens_per_forward", "80"],
]


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run of five steps over rows of unequal length and imbalanced classes, without dropout."""
    rows = [row for number, row in enumerate(labelled_rows(2 * NUM_ROWS)) if number % 2 or number % 6 == 0]
    train = write_rows((rows * 2)[:NUM_ROWS], "train.csv")
    validation = write_rows(labelled_rows(23), "validation.csv")
    return [
        f"--model_name={tiny_model}",
        f"--train_file={train}",
        f"--validation_file={validation}",
        "--test_fraction=0",
        f"--output_dir={tmp_path / 'runs'}",
        "--epochs=1",
        f"--batch_size={BATCH_SIZE}",
        "--learning_rate=1e-2",
        "--class_weights=balanced",
    ]


def max_difference(results: list[dict[str, torch.Tensor]]) -> float:
    """Return the largest absolute difference of any parameter from the first result's."""
    return max(float((other[name] - results[0][name]).abs().max()) for other in results[1:] for name in other)


def test_parameters_do_not_depend_on_processes_micro_batches_or_accumulation(argv: list[str]) -> None:
    runs = [[*argv, *cut] for cut in CUTS]
    results = [
        result
        for num_processes in (1, 2, 3)
        for result in on_processes(num_processes, "scenarios:trained", {"runs": runs})[0]
    ]
    assert [result["num_processes"] for result in results] == [1] * 5 + [2] * 5 + [3] * 5
    assert all(len(result["steps"]) == NUM_STEPS for result in results)
    assert max_difference([result["weights"] for result in results]) < 1e-9
    losses = np.array([[step["loss"] for step in result["steps"]] for result in results])
    assert np.ptp(losses, axis=0).max() < 1e-9
    rates = [[step["lr"] for step in result["steps"]] for result in results]
    assert all(rate == rates[0] for rate in rates)  # T5


def require_the_same_however_cut(argv: list[str]) -> None:
    """Check that weights and losses are the same over 1, 2 and 3 processes and three cuts; batch_size counts texts."""
    runs = [[*argv, *cut] for cut in (CUTS[0], CUTS[2], CUTS[3])]
    results = [
        result
        for num_processes in (1, 2, 3)
        for result in on_processes(num_processes, "scenarios:trained", {"runs": runs})[0]
    ]
    assert len(results) == 9
    assert max_difference([result["weights"] for result in results]) < 1e-9
    losses = np.array([[step["loss"] for step in result["steps"]] for result in results])
    assert losses.shape == (9, NUM_STEPS)
    assert np.ptp(losses, axis=0).max() < 1e-9


@pytest.mark.parametrize("kind", ["several labels", "mse", "huber"])
def test_several_labels_and_numbers_do_not_depend_on_them_either(argv: list[str], tmp_path: Path, kind: str) -> None:
    rows = [
        f"{'word ' * (1 + number % 9)},{'a;b' if number % 7 == 0 else 'ab;'[number % 3]},{number**2 % 11}"
        for number in range(60)
    ]
    for name, part in (("train", rows[:NUM_ROWS]), ("validation", rows[NUM_ROWS:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,labels,number", *part]) + "\n")
    if kind == "several labels":
        flags = ["--label_column=labels", "--label_separator=;"]
    else:
        flags = ["--label_column=number", "--problem_type=regression", f"--loss={kind}", "--class_weights=none"]
    require_the_same_however_cut([*argv, *flags])


@pytest.mark.parametrize("more", [[], ["--window_stride=4"]], ids=["side by side", "overlapping"])
def test_neither_do_long_texts_in_windows(argv: list[str], tmp_path: Path, more: list[str]) -> None:
    texts = ["word " * (1 + number * 7 % 45) for number in range(60)]  # of 1 to 45 tokens
    for name, part in (("train", range(NUM_ROWS)), ("validation", range(NUM_ROWS, 60))):
        rows = [f"{texts[number]},{'ab'[number % 3 % 2]}" for number in part]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    in_windows = ["--long_texts=windows", "--max_length=7", *more]
    require_the_same_however_cut([*argv, *in_windows])


def test_neither_does_a_teacher_with_rows_of_its_own(argv: list[str], tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", ["bad", "good"])
    new = tmp_path / "new.csv"
    new.write_text("\n".join(["text", *(" ".join(["w1 w2"] * (1 + number)) for number in range(3))]) + "\n")
    require_the_same_however_cut([*argv, f"--teacher={teacher}", f"--teacher_rows={new}"])


def test_neither_does_a_student(argv: list[str]) -> None:
    require_the_same_however_cut([*argv, "--student_layers=1", "--student_ffn=8"])


def test_gradients_agree_in_float32(argv: list[str]) -> None:
    runs = [[*argv, *cut] for cut in CUTS]
    gradients = [
        gradient
        for num_processes in (1, 2, 3)
        for gradient in on_processes(num_processes, "scenarios:first_gradients", {"runs": runs})[0]
    ]
    whole = [torch.cat([value.flatten() for value in gradient.values()]) for gradient in gradients]
    assert len(whole) == 15
    assert max(float((other - whole[0]).norm() / whole[0].norm()) for other in whole[1:]) < 1e-5


def test_weights_and_gradients_stay_in_float32_when_sharded_in_bf16(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate's own policy casts both to bf16, in which ELECTRA does not run at all."""
    model = save_tiny_model(tmp_path / "electra", "electra")
    argv = [*argv, f"--model_name={model}", "--mixed_precision=bf16", "--max_steps=2"]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    found = on_processes(2, "scenarios:gradients_and_training", {"argv": [*argv, *CUTS[0]]})[0]
    gradients = torch.cat([value.flatten() for value in found["gradients"].values()])
    changed_by_bf16 = gradients[gradients != 0] != gradients[gradients != 0].bfloat16().float()
    assert changed_by_bf16.float().mean() > 0.3
    assert {tensor.dtype for tensor in found["trained"]["weights"].values()} == {torch.float32}
    assert len(found["trained"]["evaluations"]) == 1


def test_the_usual_weighted_mean_does_depend_on_them(argv: list[str]) -> None:
    """The check above can fail: it does for torch's weighted mean of each micro-batch."""
    arguments = {"runs": [[*argv, *cut] for cut in CUTS[:3]], "patch": "weighted_mean_of_each_micro_batch"}
    results = on_processes(1, "scenarios:trained", arguments)[0]
    assert max_difference([result["weights"] for result in results]) > 1e-3


@pytest.mark.parametrize("reading", [[], ["--long_texts=windows", "--max_length=5"]], ids=["rows", "windows"])
def test_a_run_resumes_at_the_very_next_row_on_another_number_of_processes(argv: list[str], reading: list[str]) -> None:
    argv = [*argv, "--epochs=2", "--save_every=3", *reading]
    (uninterrupted,) = on_processes(1, "scenarios:trained", {"runs": [argv]})[0]
    for num_processes in (1, 3):
        stopped = on_processes(2, "scenarios:trained", {"runs": [argv], "stop_after": 3})
        run = stopped[0][0]["run"]
        resumed = on_processes(num_processes, "scenarios:trained", {"runs": [["--resume", run]]})
        fed = [sorted(row for process in resumed for row in process[0]["steps"][step]["rows"]) for step in range(7)]
        assert fed == [sorted(step["rows"]) for step in uninterrupted["steps"][3:]]
        assert [step["step"] for step in resumed[0][0]["steps"]] == list(range(4, 11))
        assert [step["lr"] for step in resumed[0][0]["steps"]] == [s["lr"] for s in uninterrupted["steps"][3:]]
        assert max_difference([uninterrupted["weights"], resumed[0][0]["weights"]]) < 1e-9


def test_a_step_that_does_not_fit_into_memory_is_cut_finer(argv: list[str]) -> None:
    """In the first step, and again in the second, when AdamW's state leaves less room."""
    argv = [*argv, "--max_tokens_per_forward=1000"]
    (roomy,) = on_processes(1, "scenarios:trained", {"runs": [argv]})[0]
    for num_processes in (1, 2):
        arguments = {"runs": [argv], "patch": "no_memory_above_60_tokens_and_later_20"}
        (tight,) = on_processes(num_processes, "scenarios:trained", arguments)[0]
        assert tight["max_tokens"] <= 20
        assert max_difference([roomy["weights"], tight["weights"]]) < 1e-9


def test_evaluation_on_three_processes_counts_a_prime_number_of_rows_once(argv: list[str]) -> None:
    one = on_processes(1, "scenarios:evaluated", {"argv": argv})[0]
    three = on_processes(3, "scenarios:evaluated", {"argv": argv})
    assert len(one["logits"]) == 23
    for process in three:
        np.testing.assert_allclose(process["logits"], one["logits"], atol=1e-5)
        assert process["metrics"] == pytest.approx(one["metrics"], abs=1e-5)


def test_a_late_process_ends_a_step_in_minutes_but_not_work_for_all() -> None:
    (main, _), (other, message) = on_processes(2, "scenarios:work_and_step_that_outlast_a_step", {})
    assert main == other == "done"
    assert "timed out" in message.lower()
    assert processes.STEP_TIMEOUT < datetime.timedelta(hours=1) < processes.WORK_TIMEOUT
