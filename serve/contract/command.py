"""What every command shares: the check for missing packages, one-message errors, exit statuses.

Exit statuses: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n.
"""

import contextlib
import importlib.util
import io
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

from serve.contract.errors import InputError, WorkStopped
from serve.contract.telemetry import switch_off_telemetry


class Terminated(KeyboardInterrupt):
    """SIGTERM, where `sigterm_as_interrupt` is in force."""


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that it removes what it has half-written."""

    def stop(*_: object) -> None:
        raise Terminated

    was = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, was)


def run_child(command: Sequence[str]) -> int:
    """Run another command to its end and return its exit status; if both are stopped, it gets the time to save."""
    with sigterm_as_interrupt(), subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt as stop:
            if isinstance(stop, Terminated):  # Ctrl-C reaches both
                process.terminate()
            return process.wait()


def _prepare_streams() -> None:
    """Let output be closed, or of an encoding that lacks a character, which is then escaped."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(
    work: Callable[[], int | None],
    *,
    needs: Sequence[str] = (),
    extra: str,
    interrupted: str = "Stopped.",
    after_os_error: str = "fix that, then run again",
    is_reported_elsewhere: Callable[[str], bool] = lambda message: not is_main_process(),
) -> int:
    """Do the work of a command and return its exit status; print an error as one message.

    The modules that it `needs` are installed by the `extra` of the distribution. `after_os_error` is the remedy for a
    full disk or another failure of the system, but for missing permissions. `is_reported_elsewhere` says whether
    another process prints a message.
    """

    def print_error(message: str) -> None:
        if not is_reported_elsewhere(message):
            prefix = "" if is_main_process() else f"rank {os.environ['RANK']} on {platform.node()}: "
            print(prefix + message, file=sys.stderr)

    def fail(message: str, status: int) -> int:
        print_error(message if status > 128 else f"error: {message}")
        return status

    _prepare_streams()
    try:
        make_ready(needs, extra)
        return work() or 0
    except InputError as error:
        return fail(str(error), 2)
    except WorkStopped as stop:
        return fail(str(stop), stop.exit_status)
    except KeyboardInterrupt as stop:
        print_error(interrupted)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stderr.close()  # or Python reports it again at exit
        return 1
    except OSError as error:
        if error.errno is None:  # from a library, such as the Hub's client: its traceback is needed
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        is_forbidden = isinstance(error, PermissionError)
        remedy = "let your user read and write it (ls -l shows who may)" if is_forbidden else after_os_error
        return fail(f"{where}{error.strerror or error}; {remedy}", 1)


def make_ready(needs: Sequence[str], extra: str) -> None:
    """Do what comes before the work of a command or a public function: no telemetry, and a check of what it `needs`.

    Raises:
        InputError: modules are missing that the `extra` of the distribution installs.
    """
    switch_off_telemetry()
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's in a notebook without widgets: it prints
    if missing := [name for name in needs if importlib.util.find_spec(name) is None]:
        on_gpu = " (for a GPU: gpu instead of cpu)" if "cpu" in extra.split(",") else ""
        raise InputError(f"{', '.join(missing)} not installed; pip install 'rawloop[{extra}]'{on_gpu}")


def given_arguments(argv: Sequence[str] | None) -> list[str]:
    """Return the arguments of a command, with underscores in flags: `--max-length` becomes `--max_length`."""
    words = sys.argv[1:] if argv is None else argv
    # Only in the name, not in all of --class_weights.a-label=2.
    return [re.sub(r"(?<=^--)[a-z][a-z-]*", lambda name: name[0].replace("-", "_"), word) for word in words]


def is_main_process() -> bool:
    """Return whether this is the main process, before there is an Accelerator to ask."""
    return os.environ.get("RANK", "0") == "0"
