import os
import subprocess
import sys

import pytest
import torch

from serve.contract import cores
from train_loop.machine import threads as threads_module
from train_loop.machine.threads import SPIN_COUNT, limit_spinning, use_the_cores


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", None])
def test_idle_threads_soon_sleep_unless_the_user_says_otherwise(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    limit_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == {None: SPIN_COUNT, "GOMP_SPINCOUNT": "1"}.get(variable)


@pytest.mark.parametrize("module", ["train_loop.main", "train_loop.evaluation", "rawloop"])
def test_the_commands_import_no_torch_before_the_spinning_is_limited(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "num_processes", "expected"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}, 1, 8),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}, 2, 4),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}, 16, 1),
        ({"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "3"}, 2, None),
        ({"OMP_NUM_THREADS": "1"}, 2, None),
        ({}, 1, 8),
    ],
)
def test_threads_are_a_share_of_the_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], num_processes: int, expected: int | None
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads: list[int] = []
    monkeypatch.setattr(threads_module, "num_usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    use_the_cores(num_processes)
    assert threads == ([] if expected is None else [expected])


def test_a_containers_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    use_the_cores(1)
    assert threads == [2]
