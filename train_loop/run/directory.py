"""The run directory: name, lock, files. Two runs never share one."""

import dataclasses
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
from accelerate import Accelerator
from rich.console import Console

from serve.contract.errors import InputError
from serve.contract.files import why_unwritable, write_json
from serve.contract.versions import installed_versions
from train_loop.command_line import DECISION_FLAGS, LENGTH_FLAGS, RESUME_FLAGS, read_config, write_yaml
from train_loop.config import BY_NAME, CONFIG_FILE, TrainConfig
from train_loop.machine.processes import on_main_process

FILLED_IN = ("loss", "metric_for_best", "learning_rate", "layer_decay")  # fields that a run writes where they are null
RECORDED_PACKAGES = ("rawloop", "torch", "accelerate", "transformers", "datasets", "tokenizers", "numpy")


class RunDirectory:
    """The folder of one run, locked while it trains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG_FILE
        self.record = path / "run.json"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.results = path / "results"
        self.samples = path / "samples"
        self.logs = path / "logs"
        self._lock = filelock.FileLock(path / ".lock")

    def lock(self) -> None:
        """Take the lock; the kernel releases it however the process ends."""
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            what = "another process is training in this run directory; wait for it, or stop it first"
            raise InputError(f"{self.path}: {what}") from error
        except OSError as error:
            remedy = "fix its permissions, or free space"
            raise InputError(f"{self.path}: not writable ({error.strerror}); {remedy}") from error

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def write_record(self, **facts: Any) -> None:
        """Write `run.json`: the command, the code, the hardware and the data."""
        own = {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "git_commit": _git_commit(),
            "versions": installed_versions(RECORDED_PACKAGES),
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
        }
        write_json(self.record, own | facts)


def open_run(config: TrainConfig, accelerator: Accelerator) -> RunDirectory:
    """Create or reopen the run directory on the main process, and return it on all; `latest` next to it points at it.

    Raises:
        InputError: --output_dir is not writable, --run_name exists already, --resume names no run directory, or another
            process has locked it.
    """
    locked: list[RunDirectory] = []

    def open_and_lock() -> Path:
        run = _reopen(config.resume) if config.resume else _create(config)
        locked.append(run)
        staged = run.path.parent / f".latest.{os.getpid()}"
        staged.unlink(missing_ok=True)
        staged.symlink_to(run.path.name)
        staged.replace(run.path.parent / "latest")
        return run.path

    path = on_main_process(accelerator, open_and_lock)
    return locked[0] if locked else RunDirectory(path)


def resume_by_name(config: TrainConfig, accelerator: Accelerator, console: Console) -> TrainConfig | None:
    """Return a configuration whose `--resume auto` is decided: a run directory, or None for a new run.

    Return None if the run is finished. The main process looks for it; call on all processes.

    Raises:
        InputError: the run of that name is of another configuration.
    """
    if config.resume != BY_NAME:
        return config
    found, is_finished = on_main_process(accelerator, lambda: _find(config))
    if not is_finished:
        return found
    console.print(f"Finished already: {found.resume}. For another run, choose another --run_name.", highlight=False)
    return None


def _find(config: TrainConfig) -> tuple[TrainConfig, bool]:
    """Return what resumes the run of the configured name, or begins it, and whether nothing is left to do in it."""
    assert config.run_name is not None, "the configuration requires it"
    run = RunDirectory(Path(config.output_dir).resolve() / config.run_name)
    if not run.config.is_file():
        return dataclasses.replace(config, resume=None), False
    there = read_config(run.config)
    filled_in = {name: getattr(there, name) for name in FILLED_IN if getattr(config, name) is None}
    config = dataclasses.replace(config, resume=str(run.path), **filled_in)
    changed = {field.name for field in dataclasses.fields(config)} - {"output_dir", "run_name", "resume"}
    changed = {name for name in changed if getattr(config, name) != getattr(there, name)}
    fixed = RESUME_FLAGS | (LENGTH_FLAGS if there.lr_schedule == "constant" else set())
    if names := sorted(changed - fixed):
        listed = "; ".join(f"{name} is {getattr(there, name)} there, {getattr(config, name)} here" for name in names)
        raise InputError(
            f"--resume auto: {run.path} is of another configuration: {listed}. Pass the values there, or choose "
            "another --run_name"
        )
    # The configuration is written again when a finished run is to go on.
    is_finished = run.model.is_dir() and run.model.stat().st_mtime >= run.config.stat().st_mtime
    return config, is_finished and not changed & (LENGTH_FLAGS | DECISION_FLAGS)


def how_to_go_on(config: TrainConfig, run: RunDirectory) -> str:
    """Return what to do when a process of the run is lost; it needs no folder that all machines share."""
    flags = "" if config.resume is not None else f", with --run_name {run.path.name} --resume auto"
    return f"start all processes again as before{flags}: they go on from the checkpoint that was saved last"


def _create(config: TrainConfig) -> RunDirectory:
    parent = Path(config.output_dir).resolve()
    parent.mkdir(parents=True, exist_ok=True)
    run = RunDirectory(_make_new(parent, config.run_name or _name(config), may_number=config.run_name is None))
    run.lock()
    for folder in (run.checkpoints, run.results, run.logs):
        folder.mkdir()
    write_yaml(run.config, config)
    return run


def _reopen(name: str) -> RunDirectory:
    run = RunDirectory(Path(name).resolve())
    if not run.config.is_file():
        raise InputError(f"--resume {name}: no {CONFIG_FILE} there; pass a run directory such as runs/latest")
    run.lock()
    return run


def require_writable(folder: str) -> None:
    """Create the folder for runs; raise InputError, before anything slow, if it cannot be, or not be written to."""
    if problem := why_unwritable(Path(folder)):
        raise InputError(f"--output_dir {folder}: {problem}")
    Path(folder).mkdir(parents=True, exist_ok=True)


def require_new_name(config: TrainConfig) -> None:
    """Raise InputError, before anything slow, if a new run would have the name of one that exists."""
    path = Path(config.output_dir, config.run_name or "").resolve()
    if config.run_name is not None and config.resume is None and path.exists():
        raise _is_taken(config.run_name, path)


def _is_taken(name: str, path: Path) -> InputError:
    remedy = f"choose another name, or continue with --resume {shlex.quote(str(path))}"
    return InputError(f"--run_name {name}: {path} exists already; {remedy}")


def _make_new(parent: Path, name: str, *, may_number: bool) -> Path:
    """Create a folder that did not exist: mkdir fails if another run was faster."""
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            if not may_number:
                raise _is_taken(name, path) from None
        else:
            return path
    raise InputError(f"{parent}: 999 runs named {name} already; set --run_name")


def _name(config: TrainConfig) -> str:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d_%H-%M-%S")
    if config.train_file is not None:
        file = Path(config.train_file).resolve()
        data = file.parent.name if file.stem.lower() in ("train", "training") else file.stem
    else:
        assert config.dataset_name is not None
        data = "_".join(filter(None, (Path(config.dataset_name.rstrip("/")).name, config.dataset_config)))
    names = (Path(config.model_name.rstrip("/")).name, data)
    return "_".join([now, *(re.sub(r"[^A-Za-z0-9.-]+", "_", name) for name in names)])


def _git_commit() -> str | None:
    """Return the commit of the code, followed by `+` if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        ended = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
