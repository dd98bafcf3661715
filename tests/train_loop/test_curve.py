import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from distributed import on_processes
from labelled_rows import labelled_rows

from train_loop import curve
from train_loop.command_line import parse_config, write_yaml
from train_loop.curve import Point, continued
from train_loop.model.pretrained import load_tokenizer
from train_loop.rows.data import class_counts, load_data


def forked(command: list[str]) -> int:
    """Run `python -m MODULE ...` in a fork of a process that has imported torch, which takes longer than training."""
    assert command[:2] == [sys.executable, "-m"]
    (ended,) = on_processes(1, "scenarios:command", {"words": command[2:]})
    print(ended["out"], ended["errors"])
    return int(ended["status"])


def test_a_curve_is_trained_drawn_and_found_again(
    tmp_path: Path,
    tiny_model: Path,
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(curve, "run_child", forked)
    folder = tmp_path / "curve"
    rows = write_rows(labelled_rows(80))
    argv = [f"--model_name={tiny_model}", f"--train_file={rows}", "--epochs=1", f"--curve={folder}"]
    argv += ["--fractions=0.5,1", "--mixed_precision=no"]
    assert curve.main(argv) == 0
    output = capsys.readouterr().out
    found = json.loads((folder / "curve.json").read_text())
    assert found["metric"] == "accuracy"
    assert [point["rows"] for point in found["points"]] == [32, 64]
    assert [point["rows"] for point in found["forecast"]] == [128, 256]
    metrics = json.loads((folder / "rows_64_seed_42/results/metrics.json").read_text())
    assert found["points"][1]["value"] == metrics["splits"]["test"]["metrics"]["accuracy"]
    assert "64 rows: accuracy" in output
    assert (folder / "curve.png").stat().st_size > 10_000
    assert curve.main(argv) == 0  # all runs are finished
    assert json.loads((folder / "curve.json").read_text()) == found
    assert "optimizer steps" not in capsys.readouterr().out
    assert curve.main([*argv, "--epochs=2"]) == 2
    assert "is a curve with another epochs; pass a new --curve FOLDER" in capsys.readouterr().err
    assert json.loads((folder / "curve.json").read_text()) == found


def test_without_arguments_it_is_the_quickstart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def refuse(command: list[str]) -> int:
        commands.append(command)
        return 2

    monkeypatch.setattr(curve, "run_child", refuse)
    assert curve.main([]) == 2
    said = "46 rows ended with status 2; the reason is above"
    assert said in capsys.readouterr().err
    assert commands[0][3:5] == ["--config", "quickstart"]
    write_yaml(finished := tmp_path / "config.yaml", parse_config(["--config=quickstart", "--run_name=r"]))
    assert curve.main([f"--config={finished}"]) == 2  # its name and folder do not matter
    assert commands[1][-10:-8] == ["--output_dir", "curve"]


def test_fewer_training_rows_keep_the_shares_and_are_among_more(
    tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]
) -> None:
    rows = write_rows([row for number, row in enumerate(labelled_rows(200)) if number % 2 or number % 8 == 0])
    texts = {}
    for number in (10, 20, 40):
        argv = [f"--model_name={tiny_model}", f"--train_file={rows}", f"--max_train_rows={number}"]
        config = parse_config(argv)
        data = load_data(config, *load_tokenizer(config))
        assert len(data.train) == number
        assert data.splits["test"].text_hashes.sum() == texts.setdefault(
            "held out", data.splits["test"].text_hashes.sum()
        )
        assert abs(class_counts(data.train, data.labels)[1] - 0.8 * number) <= 1
        texts[number] = set(data.train.text_hashes)
    assert texts[10] < texts[20] < texts[40]


def test_a_power_law_is_continued() -> None:
    points = [Point(rows, 1 - 2 * rows**-0.5, (0.0, 0.0)) for rows in (100, 300, 1_000)]
    points = [Point(each.rows, each.value, (each.value - 0.01, each.value + 0.01)) for each in points]
    twice, four_times = continued(points)
    assert (twice.rows, four_times.rows) == (2_000, 4_000)
    assert twice.value == pytest.approx(1 - 2 * 2_000**-0.5, abs=1e-9)
    assert four_times.value == pytest.approx(1 - 2 * 4_000**-0.5, abs=1e-9)
    assert twice.interval[0] < twice.value < twice.interval[1]


def test_a_curve_that_falls_is_not_continued_downwards() -> None:
    points = [Point(100, 0.8, (0.75, 0.85)), Point(200, 0.7, (0.65, 0.75))]
    assert [point.value for point in continued(points)] == pytest.approx([0.7, 0.7])
    assert np.isfinite([point.interval for point in continued(points)]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fractions=0.5"], "expected two or more from 0 to 1"),
        (["--fractions=a,b"], "expected two or more from 0 to 1"),
        (["--fractions=0,1"], "expected two or more from 0 to 1"),
        (["--fractions=0.99,0.999"], "these are the same number"),
        (["--seeds=0"], "--seeds must be at least 1"),
        (["--run_name=r"], "--run_name is not for learning curves"),
        (["--output_dir=r"], "--output_dir is not for learning curves"),
        (["--nonsense=1"], "--nonsense: no such field"),
    ],
)
def test_bad_input(
    tiny_model: Path,
    write_rows: Callable[..., Path],
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write_rows(labelled_rows(40))
    assert curve.main([f"--model_name={tiny_model}", f"--train_file={rows}", *flags]) == 2
    assert message in capsys.readouterr().err
