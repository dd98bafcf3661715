"""The command line."""

import errno
import json
import re
import shutil
import sys
from pathlib import Path

import filelock
import pytest
from tiny_runs import LABELS, text_of

from export.__main__ import main
from serve.contract.bundle import BUNDLE_FILE, Bundle, read_bundle
from serve.contract.classifier import Classifier, read_classifier, write_classifier

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_a_triton_repository_that_cannot_be_written_is_reported_before_the_export(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp32", "--triton"]
    assert main([*arguments, str(tmp_path / "file")]) == 2
    assert "file: this is a file; name a folder" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_the_command_writes_a_bundle_and_prints_what_is_next(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--run",
        str(run),
        "--output",
        str(tmp_path / "b"),
        "--variants",
        "fp32",
        "--triton",
        str(tmp_path / "t"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "python -m serve.predict --bundle" in printed
    assert (tmp_path / "t" / "tiny_fp32" / "1" / "model.onnx").is_file()
    config = (tmp_path / "t" / "tiny_fp32" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "attention_mask" data_type: TYPE_INT64' in config
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".b.lock"]


def test_a_failed_export_leaves_the_old_bundle_unchanged(run: Path, tmp_path: Path, bundle: Bundle) -> None:
    shutil.copytree(bundle.folder, tmp_path / "b")
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    contract = read_classifier(broken / "model")
    write_classifier(broken / "model", Classifier(**{**vars(contract), "labels": tuple(reversed(LABELS))}))
    assert main(["--run", str(broken), "--output", str(tmp_path / "b")]) == 2
    assert read_bundle(tmp_path / "b").manifest == bundle.manifest


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rows", "absent.csv"], "absent.csv: no such file"),
        (["--min_label_agreement", "1.5"], "above 0 and at most 1"),
        (["--output", "FULL"], "the folder has other files, and would be replaced"),
        (["--calibration_rows", "BAD"], "line 2: label 'ugly' is not one of the model's: bad, good"),
        (["--calibration_rows", "EMPTY"], "no rows"),
        (["--calibration_rows", "COLUMN"], "line 1: no column 'text'; it has 'body', 'label'"),
        (["--calibration_rows", "LATER"], "line 2: no column 'label'"),
        (["--calibration_rows", "LIST"], "line 1: expected a JSON object, found list"),
        (["--calibration_rows", "ODD"], "line 1: label \"['bad']\" is not one of the model's"),
        (["--output", "BAD"], "this is a file; name a folder"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    run: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"BAD": "text,label\na,ugly\n", "EMPTY": "text,label\n", "COLUMN": "body,label\na,bad\n"}
    places = {name: tmp_path / f"{name}.csv" for name in contents}
    lines = {
        "LATER": '{"text": "a", "label": "bad"}\n{"text": "b"}\n',
        "LIST": "[1, 2]\n",
        "ODD": '{"text": "a", "label": ["bad"]}\n',
    }
    places |= {name: tmp_path / f"{name}.jsonl" for name in lines}
    contents |= lines
    for name, content in contents.items():
        places[name].write_text(content, encoding="utf-8")
    places["FULL"] = tmp_path / "full"
    places["FULL"].mkdir()
    (places["FULL"] / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["--run", str(run), *(str(places.get(word, word)) for word in extra)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "onnx" / BUNDLE_FILE).exists()


def test_an_absent_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path)]) == 2
    assert "expected a folder written by training" in capsys.readouterr().err


def test_an_unfinished_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert main(["--run", str(tmp_path)]) == 2
    assert "not finished; continue it with train_loop/main.py --resume" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_costs_nothing(
    run: Path, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    shutil.copytree(bundle.folder, tmp_path / "b")
    monkeypatch.setattr("export.mask_lengths.to_half", fill)
    assert main(["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp16"]) == 1
    assert re.search(r"error: .*fp16.onnx: No space left on device; a bundle .* unchanged", capsys.readouterr().err)
    assert read_bundle(tmp_path / "b").manifest == bundle.manifest


def test_two_exports_never_write_the_same_bundle(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(tmp_path / ".b.lock"):
        assert main(["--run", str(run), "--output", str(tmp_path / "b")]) == 2
    assert "another export is writing it" in capsys.readouterr().err


def test_a_calibration_on_empty_texts_is_caught_by_the_gate(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "train.csv"
    empty.write_text("text,label\n" + "".join(f'"",{LABELS[n % 2]}\n' for n in range(40)), encoding="utf-8")
    assert (
        main(
            ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "int8", "--calibration_rows", str(empty)]
        )
        == 1
    )
    bundle = read_bundle(tmp_path / "b")
    assert set(bundle.manifest.variants) == {"fp32"}
    assert bundle.default_variant("cpu") == "fp32"


def test_calibration_rows_prove_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = str(run / "samples" / "train.parquet")
    assert main(["--run", str(run), "--output", str(tmp_path / "b"), "--rows", seen]) == 2
    assert (
        "train.parquet: every calibration row (the train split) is also one of the rows to verify on"
        in capsys.readouterr().err
    )


def test_a_file_of_rows_goes_by_its_name(run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "new.jsonl"
    # Line endings of other kinds belong to the text.
    lines = [{"text": f"{text_of(number)}\u2028{number}\x85", "label": LABELS[number % 2]} for number in range(60)]
    rows.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    arguments = ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp32", "--rows"]
    assert main([*arguments, str(rows)]) == 0
    record = read_bundle(tmp_path / "b").manifest.variants["fp32"].verification
    assert (record.split, record.rows) == ("new.jsonl", 60)
    assert "60 rows of new.jsonl" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "strict"), [([], True), (["--strict"], True), (["--no_strict"], False), (["--no-strict"], False)]
)
def test_strict_can_be_switched_off(flags: list[str], strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.__main__._export", lambda arguments: arguments.strict)
    assert main(["--run", "runs/latest", *flags]) == strict


def test_importing_export_is_light() -> None:
    import subprocess

    code = "import sys, export.__main__; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
