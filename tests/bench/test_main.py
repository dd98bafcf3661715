import shlex
from pathlib import Path

import pytest
from places import ROOT

import bench.__main__
from bench.__main__ import COMMANDS, main, parse
from bench.harness.hardware import available_cores, describe_machine
from bench.harness.options import CommonOptions


def test_every_command_has_help_that_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            parse([command, "--help"])
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert ("--run" if command != "compare" else "before") in out
        assert ("--quick" in out) == (command != "compare")


def test_flags_become_options() -> None:
    module, options = parse(
        [
            "inference",
            "--run",
            "runs/x",
            "--quick",
            "--batch_sizes",
            "[4,2]",
            "--contenders+=pipeline",
            "--contenders",
            "OpenVINO int8, throughput",
            "--students=a/onnx",
            "--output",
            "out",
        ]
    )
    assert module == "bench.inference.run"
    assert options.run == Path("runs/x")
    assert options.quick
    assert not options.self_check
    assert options.used_batch_sizes == [1, 32]
    assert options.contenders == ["pipeline", "OpenVINO int8, throughput"]
    assert options.students == [Path("a/onnx")]


def test_compare_takes_two_files() -> None:
    module, options = parse(["compare", "a.json", "b"])
    assert (module, options.before, options.after) == ("bench.harness.compare", Path("a.json"), Path("b"))


@pytest.mark.parametrize("argv", [[], ["load"], ["racing"], ["training", "--run", "x", "--laps", "3"]])
def test_an_unknown_or_missing_argument_exits_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2


def test_bad_input_is_one_message_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "a.json: no such file; expected a folder written by python -m bench" in error
    assert main(["training", "--run", "x", "--threads", "0"]) == 2
    assert "--threads must be at least 1" in capsys.readouterr().err
    assert main(["inference", "--run", str(tmp_path)]) == 2
    assert "classifier.json: no such file" in capsys.readouterr().err


def test_the_machine_is_described() -> None:
    machine = describe_machine(cores=available_cores(), num_threads=2)
    assert machine.versions["torch"].startswith("2.")
    assert machine.memory_gib > 0
    assert "2 threads a contender" in str(machine)
    assert len(machine.commit.removesuffix("+changes")) in (0, 40)


def test_threads_are_no_more_than_the_quota_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.harness.options.num_usable_cores", lambda: 2)
    monkeypatch.setattr("bench.harness.options.available_cores", lambda: tuple(range(64)))
    assert CommonOptions().num_threads == 2
    assert CommonOptions(cores=[5]).num_threads == 1
    assert CommonOptions(threads=8).num_threads == 8


def test_the_commands_of_the_documents_parse() -> None:
    text = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert bench.__main__.__doc__ is not None
    for lines in (text, bench.__main__.__doc__):  # the second is what --help shows
        commands = [line.partition("#")[0].strip() for line in lines.splitlines() if line.startswith("python -m bench")]
        modules = {parse(shlex.split(command)[3:])[0] for command in commands}
        assert modules == {place.partition(":")[0] for place in COMMANDS.values()}
