"""A teacher's answers: to the right rows, computed once, and never of rows that a split holds out."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from distributed import build, on_processes
from labelled_rows import labelled_rows
from teachers import save_teacher
from transformers import pipeline

from serve.contract.errors import InputError
from train_loop import defaults
from train_loop import main as train
from train_loop.command_line import read_config
from train_loop.distillation import teacher as teaching
from train_loop.steps.scoring import predict_splits

pytestmark = pytest.mark.usefixtures("pictureless")

LABELS = sorted({label for _, label in labelled_rows(30)})


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the logits of one test from the next."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run with a teacher whose labels are in another order than the rows'."""
    teacher = save_teacher(tmp_path / "teacher", LABELS[::-1])
    return [
        f"--model_name={tiny_model}",
        f"--train_file={write_rows(labelled_rows(60), 'train.csv')}",
        f"--validation_file={write_rows(labelled_rows(83)[60:], 'validation.csv')}",
        "--test_fraction=0",
        f"--output_dir={tmp_path / 'runs'}",
        "--epochs=1",
        "--batch_size=8",
        f"--teacher={teacher}",
    ]


def with_new_texts(tmp_path: Path, known: int = 0) -> list[str]:
    """Return the flag for rows of which 9 texts are new, one of them twice, and `known` are training rows."""
    rows = [f"w{number} new" for number in [*range(9), 3]] + [text for text, _ in labelled_rows(known)]
    path = tmp_path / "more.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return [f"--teacher_rows={path}"]


def test_each_row_gets_the_teachers_own_logits_in_the_order_of_the_labels(argv: list[str], tmp_path: Path) -> None:
    training = build([*argv, *with_new_texts(tmp_path)])
    texts = [text for (text,) in training.learned.texts(["text"])]
    assert len(texts) == 60 + 9
    judge = pipeline("text-classification", str(tmp_path / "teacher"), top_k=None, function_to_apply="none")
    expected = [[{each["label"]: each["score"] for each in found}[label] for label in LABELS] for found in judge(texts)]
    rows = np.array([68, 3, 17, 60])
    batch = training.collate(rows)
    np.testing.assert_allclose(batch.teacher_logits, np.array(expected)[rows], atol=1e-5)
    assert batch.teacher_weights.tolist() == [1.0, 0.5, 0.5, 1.0]
    np.testing.assert_array_equal(batch.labels[[0, 3]], np.array(expected)[[68, 60]].argmax(axis=1))
    assert np.ptp(np.array(expected), axis=0).min() > 0.1  # it gives different rows different answers


def test_rows_that_a_split_has_are_left_out(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = build([*argv, *with_new_texts(tmp_path, known=23)])
    assert len(training.data.taught) == 9
    assert training.learned.row_number(60) == 61
    only_known = tmp_path / "known.csv"
    only_known.write_text("\n".join(["text", *(text for text, _ in labelled_rows(20))]) + "\n")
    with pytest.raises(InputError, match=r"all 20 texts are among the training, validation and test rows"):
        build([*argv, f"--teacher_rows={only_known}"])


def test_logits_are_computed_once(argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(accelerator: object, folder: object, classifier: object, tokenizer: object, splits: object, limit: int):  # type: ignore[no-untyped-def]
        for split, logits in (
            (split, next(predict_splits(accelerator, folder, classifier, tokenizer, [split], limit)))  # type: ignore[arg-type]
            for split in splits  # type: ignore[attr-defined]
        ):
            asked.append(len(split))
            yield logits

    monkeypatch.setattr(teaching, "predict_splits", counted)
    monkeypatch.setattr(teaching, "ROWS_AT_ONCE", 25)
    first = build(argv)
    assert asked == [25, 25, 10, 23]
    asked.clear()
    second = build([*argv, "--seed=3"])
    assert asked == []
    np.testing.assert_array_equal(
        first.data.teacher.logits_of(np.arange(60)), second.data.teacher.logits_of(np.arange(60))
    )
    build([*argv, *with_new_texts(tmp_path)])  # only the new texts
    assert asked == [9]
    asked.clear()
    AcceleratorState._reset_state()
    other = build([*argv, "--mixed_precision=bf16"])  # whose answers differ, but a run may go on with them
    AcceleratorState._reset_state()
    assert asked == [25, 25, 10, 23]
    assert other.data.fingerprint_of_learned == first.data.fingerprint_of_learned


@pytest.mark.parametrize("kind", ["several labels", "numbers"])
def test_a_teacher_of_several_labels_or_numbers(argv: list[str], tmp_path: Path, tiny_model: Path, kind: str) -> None:
    rows = [
        f"w{number} w{number // 2},{'a;b' if number % 7 == 0 else 'ab;'[number % 3]},{number % 11}"
        for number in range(60)
    ]
    for name, part in (("train", rows[:40]), ("validation", rows[40:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,labels,number", *part]) + "\n")
    if kind == "numbers":
        labels, problem_type, flags = ["number"], "regression", ["--label_column=number", "--problem_type=regression"]
    else:
        labels, problem_type = ["b", "a"], "multi_label_classification"
        flags = ["--label_column=labels", "--label_separator=;"]
    save_teacher(tmp_path / "teacher", labels, problem_type=problem_type)
    argv = [*argv, *flags, *with_new_texts(tmp_path)]
    training = build(argv)
    batch = training.collate(np.arange(49))
    assert batch.teacher_logits.shape == (49, len(labels))
    answers = training.data.teacher.logits_of(np.arange(40, 49))
    if kind == "numbers":  # they are standardized, as the labels are
        np.testing.assert_allclose(batch.labels[40:], answers[:, 0], atol=1e-5)
        assert abs(float(batch.labels[:40].mean())) < 1e-5
    else:
        np.testing.assert_array_equal(batch.labels[40:], answers >= 0)
    assert train.main([*argv, "--run_name=r"]) == 0


def test_a_finished_run_is_a_teacher_with_calibrated_answers(argv: list[str], tmp_path: Path, tiny_model: Path) -> None:
    own = [word for word in argv if not word.startswith("--teacher")]
    assert train.main([*own, "--run_name=teacher"]) == 0
    run = tmp_path / "runs" / "teacher"
    temperature = json.loads((run / "model/classifier.json").read_text())["temperature"]
    training = build([*own, f"--teacher={run}", "--distil_weight=0.25"])
    soft = training.data.teacher
    assert soft.scale == temperature
    assert set(soft.weights) == {np.float32(0.25)}
    judge = pipeline("text-classification", str(run / "model"), top_k=None, function_to_apply="none")
    text = next(training.learned.texts(["text"]))[0]
    expected = {each["label"]: each["score"] / temperature for each in judge([text])[0]}
    np.testing.assert_allclose(soft.logits_of(np.array([0]))[0], [expected[label] for label in LABELS], atol=1e-5)


def test_a_student_learns_what_only_the_teacher_knows(argv: list[str], tmp_path: Path) -> None:
    """Without labels' part of the loss, the student comes closer to the teacher, far from the labels."""
    training = build([*argv, "--distil_weight=1.0", "--learning_rate=1e-2", "--epochs=6"])
    from train_loop import loop
    from train_loop.training import restore

    def gap() -> float:
        own = torch.from_numpy(training.predict(training.data.train)).softmax(-1).numpy()
        given = torch.from_numpy(training.data.teacher.logits_of(np.arange(60))).softmax(-1).numpy()
        return float(np.abs(own - given).mean())

    before = gap()
    loop.train(training, restore(training))
    assert gap() < 0.5 * before


def test_the_default_learning_rate_counts_texts_that_only_the_teacher_labels(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half as many as the rows with labels make; the 9 texts make another.
    monkeypatch.setattr(defaults, "STEPS_AT_FULL_RATE", 4)
    assert train.main([*argv, *with_new_texts(tmp_path), "--run_name=taught"]) == 0
    assert read_config(tmp_path / "runs/taught/config.yaml").learning_rate == 9e-5


def test_kills_while_the_teacher_answers_and_while_learning_change_nothing(argv: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    argv = [*argv, *with_new_texts(tmp_path), "--save_every=2", "--epochs=4", "--mixed_precision=no"]
    on_processes(1, "killed_training:killed_and_whole", {"runs": str(runs), "arguments": argv, "num_kills": 6})
    killed, whole = ((runs / name / "model/model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert killed == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--teacher=nowhere"], "^--teacher nowhere: could not be loaded"),
        (["--teacher_rows=absent.csv"], "absent.csv: no such file"),
    ],
)
def test_bad_input(argv: list[str], change: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build([*argv, *change])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "body,a,b\nhello,1,0\nbye,0,1\n", "no column 'text'; it has 'body', 'a', 'b'"),
        ("a.jsonl", '{"text": "hello"}\n{"text": ["x", "y"]}\n', "expected a string, found a list"),
    ],
)
def test_texts_for_the_teacher_are_not_taken_for_labels(
    argv: list[str], tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        build([*argv, f"--teacher_rows={tmp_path / name}"])
    assert message in str(caught.value)
    assert "label" not in str(caught.value).replace("--label_column", "")


def test_a_teacher_of_other_labels_or_of_pairs_is_refused(argv: list[str], tmp_path: Path) -> None:
    other = save_teacher(tmp_path / "other", ["yes", "no"])
    with pytest.raises(InputError, match=r"its labels are \['yes', 'no'\], those of the rows"):
        build([*argv, f"--teacher={other}"])
    other = save_teacher(tmp_path / "sets", LABELS, problem_type="multi_label_classification")
    with pytest.raises(InputError, match="of multi_label_classification, and the rows are of single_label_classif"):
        build([*argv, f"--teacher={other}"])
    own = [word for word in argv if not word.startswith("--teacher")]
    for name in ("train", "validation"):
        rows = [f"{text},{text},{label}" for text, label in labelled_rows(40)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,other,label", *rows]) + "\n")
    assert train.main([*own, "--run_name=pairs", "--text_pair_column=other"]) == 0
    with pytest.raises(InputError, match="it takes pairs, and the rows are single texts"):
        build([*argv, f"--teacher={tmp_path / 'runs' / 'pairs'}"])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_text("")
    with pytest.raises(InputError, match="the run is not finished; continue it with --resume"):
        build([*argv, f"--teacher={unfinished}"])


def test_another_teacher_does_not_continue_a_run(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*argv, "--run_name=r"]) == 0
    save_teacher(tmp_path / "teacher", LABELS[::-1], seed=5)
    assert train.main(["--resume", str(tmp_path / "runs" / "r")]) == 2
    assert "of other rows or another teacher" in capsys.readouterr().err
