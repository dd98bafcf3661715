"""Training over machines: nothing is silent, nothing waits for ever, and only the main process writes."""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import on_processes
from labelled_rows import labelled_rows
from places import ROOT
from safetensors.torch import load_file

HOST = platform.node()
Nodes = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run of ten steps."""
    train = write_rows(labelled_rows(40), "train.csv")
    validation = write_rows(labelled_rows(23), "validation.csv")
    flags = "--test_fraction 0 --epochs 2 --batch_size 8 --learning_rate 1e-2 --mixed_precision no --save_every 2"
    files = [f"--model_name={tiny_model}", f"--train_file={train}", f"--validation_file={validation}"]
    return [*flags.split(), *files]


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    """Return a runner of one command for each process, each in a folder of its own."""

    def run(*commands: list[str], **faults: str) -> list[dict[str, Any]]:
        for ended in tmp_path.glob("*.ended"):
            ended.unlink()
        of_ranks = {name.removeprefix("rank_"): fault for name, fault in faults.items()}
        arguments = {"folder": str(tmp_path), "commands": commands, "faults": of_ranks}
        return on_processes(len(commands), "nodes:trained_on_nodes", arguments)

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_each_machine_has_its_own_folders_and_only_the_main_process_writes(
    argv: list[str], nodes: Nodes, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.csv").write_bytes((tmp_path / "train.csv").read_bytes())
    elsewhere = [*argv, "--train_file", str(tmp_path / "elsewhere.csv"), "--output_dir", "other"]
    found = nodes([*argv, "--run_name", "a"], [*elsewhere, "--run_name", "a"], rank_0="slow_at_the_end")
    assert [each["status"] for each in found] == [0, 0], found
    assert not list((tmp_path / "node-1").iterdir())
    assert nodes([*argv, "--run_name", "one"])[0]["status"] == 0
    runs = tmp_path / "node-0" / "runs"
    one, two = weights(runs / "one"), weights(runs / "a")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4  # float32, 10 steps of Adam


def test_an_error_of_one_process_is_reported_by_it_and_ends_the_others(argv: list[str], nodes: Nodes) -> None:
    main, other = nodes(argv, [*argv, "--train_file", "absent.csv"])
    assert (main["status"], other["status"]) == (1, 2)
    assert f"rank 1 on {HOST}: error: absent.csv: no such file" in other["said"]
    assert f"error: rank 1 on {HOST} ended with an error: absent.csv: no such file" in main["said"]
    main, other = nodes(argv, argv, rank_1="fails_in_a_step")
    assert "the memory of this machine is broken" in other["said"]
    assert main["status"] == 1
    assert f"error: rank 1 on {HOST} ended with an error: the memory of this machine is broken" in main["said"]
    assert "--resume auto" in main["said"]
    assert "Traceback" not in main["said"]
    assert max(main["seconds"], other["seconds"]) < 30


def test_an_error_that_all_processes_have_is_reported_once(argv: list[str], nodes: Nodes) -> None:
    wrong = [*argv, "--label_column", "nope"]
    main, *others = nodes(wrong, wrong, wrong)
    assert main["said"].count("no column 'nope'") == 1
    assert [each["status"] for each in (main, *others)] == [2, 2, 2]
    assert not any("error" in each["said"] for each in others), others


def test_processes_that_differ_are_refused_before_the_first_step(argv: list[str], nodes: Nodes, tmp_path: Path) -> None:
    main, other = nodes(argv, [*argv, "--learning_rate", "2e-2"], rank_1="has_another_torch")
    assert (main["status"], other["status"]) == (2, 2)
    assert f"learning_rate: 0.02 on rank 1 ({HOST}), 0.01 on rank 0 ({HOST})" in main["said"]
    assert f"version of torch: 1.0 on rank 1 ({HOST}), {version('torch')} on rank 0" in main["said"]
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "reversed.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    main, other = nodes(argv, [*argv, "--train_file", str(tmp_path / "reversed.csv")])
    assert (main["status"], other["status"]) == (2, 2)
    assert "data fingerprint: " in main["said"]
    assert not list((tmp_path / "node-0" / "runs").glob("*"))


@pytest.mark.parametrize(
    ("rank", "fault", "gone"),
    [
        (1, "killed_in_a_step", "has not answered"),
        (0, "killed_in_a_step", "cannot be reached"),
        (1, "silent_in_a_step", "has not answered"),
        (0, "silent_at_the_results", "cannot be reached"),
    ],
)
def test_the_others_of_a_lost_process_end_with_one_sentence(
    argv: list[str], nodes: Nodes, rank: int, fault: str, gone: str
) -> None:
    """Its connections are closed when it is killed, and silent when it is stopped, as on a dead link."""
    survivor = nodes(argv, argv, **{f"rank_{rank}": fault})[1 - rank]
    assert survivor["status"] == 1
    assert f"error: rank {rank} on {HOST}" in survivor["said"]
    assert gone in survivor["said"]
    assert survivor["said"].count("error:") == 1
    assert "Traceback" not in survivor["said"]
    assert survivor["seconds"] < 40


def test_a_process_that_finds_no_other_says_so_and_ends(argv: list[str], nodes: Nodes) -> None:
    main, _ = nodes(argv, argv, rank_0="waits_briefly", rank_1="never_comes")
    assert main["status"] == 1
    assert f"rank 0 on {HOST}: still waiting for the other processes" in main["said"]
    assert f"rank 0 on {HOST}: error: not connected" in main["said"]


def test_resume_auto_starts_goes_on_and_ends_by_one_command_line(argv: list[str], nodes: Nodes, tmp_path: Path) -> None:
    command, runs = [*argv, "--run_name", "kept", "--resume", "auto"], tmp_path / "node-0" / "runs"
    nodes(command, command, rank_1="killed_in_a_step")
    assert sorted(path.name for path in (runs / "kept" / "checkpoints").glob("step-*"))[-1] == "step-00000005"
    main, other = nodes(command, command)
    assert (main["status"], other["status"]) == (0, 0), main
    assert "Continuing from step-00000005" in main["shown"]
    main, other = nodes(command, command)
    assert (main["status"], other["status"]) == (0, 0)
    assert "Finished already" in main["shown"]
    (whole,) = nodes([*argv, "--run_name", "whole", "--resume", "auto"])
    assert whole["status"] == 0
    one, two = weights(runs / "whole"), weights(runs / "kept")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4  # float32, 10 steps of Adam
    (refused,) = nodes([*command, "--learning_rate", "0.5"])
    assert refused["status"] == 2
    assert "learning_rate is 0.01 there, 0.5 here" in refused["said"]
    (refused,) = nodes([*argv, "--resume", "auto"])
    assert "pass --run_name NAME too" in refused["said"]


def test_accelerate_launch_cpu_over_machines_is_refused(argv: list[str]) -> None:
    launch = "-m accelerate.commands.launch --cpu --num_machines 2 --num_processes 2 --machine_rank 1"
    meet = "--main_process_ip 127.0.0.1 --main_process_port 29500 -m train_loop.main"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *launch.split(), *meet.split(), *argv],
        capture_output=True, text=True, env=environment, timeout=100, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "for one training over all of them: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in ended.stderr
