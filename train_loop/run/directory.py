"""The run directory: its name, its lock, its files. Two runs never share one."""

import datetime
import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
from accelerate import Accelerator

from serve.contract.errors import InputError
from serve.contract.files import write_json
from serve.contract.versions import installed_versions
from train_loop.command_line import write_yaml
from train_loop.config import CONFIG_FILE, TrainConfig
from train_loop.machine.processes import on_main_process

RECORDED_PACKAGES = ("rawloop", "torch", "accelerate", "transformers", "datasets", "tokenizers", "numpy")


class RunDirectory:
    """The folder of one run, held by one run at a time.

    Args:
        path: the folder; it must exist.
    """

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

    @classmethod
    def create(cls, config: TrainConfig) -> "RunDirectory":
        """Make a new run directory under `config.output_dir`, and hold it.

        Raises:
            InputError: the folder cannot be written, or --run_name exists already.
        """
        parent = Path(config.output_dir).resolve()
        name = config.run_name or _name(config)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            path = _make_new(parent, name, may_number=config.run_name is None)
        except OSError as error:
            raise InputError(
                f"--output_dir {config.output_dir}: cannot be written ({error.strerror}); name another folder"
            ) from error
        run = cls(path)
        run.hold()
        for folder in (run.checkpoints, run.results, run.logs):
            folder.mkdir()
        write_yaml(run.config, config)
        return run

    @classmethod
    def reopen(cls, name: str) -> "RunDirectory":
        """Open an existing run directory, and hold it.

        Raises:
            InputError: it is no run directory, or another process holds it.
        """
        path = Path(name).resolve()
        if not (path / CONFIG_FILE).is_file():
            raise InputError(f"--resume {name}: no {CONFIG_FILE} there; give a run directory such as runs/latest")
        run = cls(path)
        run.hold()
        return run

    def hold(self) -> None:
        """Take the lock; the kernel gives it back however the process ends."""
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise InputError(
                f"{self.path}: another process is training in this run directory; wait for it, or stop it first"
            ) from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def point_latest(self) -> None:
        """Let the symlink `latest` beside the run point at it."""
        staged = self.path.parent / f".latest.{os.getpid()}"
        staged.unlink(missing_ok=True)
        staged.symlink_to(self.path.name)
        staged.replace(self.path.parent / "latest")

    def write_record(self, **facts: Any) -> None:
        """Write `run.json`: what ran, on what, from which code and data."""
        write_json(
            self.record,
            {
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "git_commit": _git_commit(),
                "versions": installed_versions(RECORDED_PACKAGES),
                "platform": platform.platform(),
                "cpu_count": os.cpu_count(),
                **facts,
            },
        )


def open_run(config: TrainConfig, accelerator: Accelerator) -> RunDirectory:
    """Make or reopen the run directory, on the main process, and tell all which it is.

    Raises:
        InputError: what `create` and `reopen` raise.
    """
    held: list[RunDirectory] = []

    def open_and_hold() -> Path:
        held.append(RunDirectory.reopen(config.resume) if config.resume else RunDirectory.create(config))
        held[0].point_latest()
        return held[0].path

    path = on_main_process(accelerator, open_and_hold)
    return held[0] if held else RunDirectory(path)


def require_writable(folder: str) -> None:
    """Fail before anything slow where the folder for runs cannot be written.

    Raises:
        InputError: it cannot be made, or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise InputError(f"--output_dir {folder}: cannot be written ({error.strerror}); name another folder") from error


def _make_new(parent: Path, name: str, *, may_number: bool) -> Path:
    """Make a folder that did not exist: mkdir fails where another run was faster."""
    for number in range(1, 1000):
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            if not may_number:
                raise InputError(
                    f"--run_name {name}: {path} exists already; choose another name, or continue it by --resume {path}"
                ) from None
        else:
            return path
    raise InputError(f"{parent}: 1000 runs named {name}; set --run_name")


def _name(config: TrainConfig) -> str:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d_%H-%M-%S")
    if config.train_file is not None:
        file = Path(config.train_file).resolve()
        data = file.parent.name if file.stem.lower() in ("train", "training") else file.stem
    else:
        assert config.dataset_name is not None
        data = Path(config.dataset_name.rstrip("/")).name
        if config.dataset_config is not None:
            data += f"_{config.dataset_config}"
    model = Path(config.model_name.rstrip("/")).name
    return f"{now}_{re.sub(r'[^A-Za-z0-9.-]+', '_', model)}_{re.sub(r'[^A-Za-z0-9.-]+', '_', data)}"


def _git_commit() -> str | None:
    """Return the commit of the code, with `+` behind it where files differ from it."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
