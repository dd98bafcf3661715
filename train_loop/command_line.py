"""What every command here does around its work: missing packages, errors as one message, exit statuses."""

import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence

NEEDED = (
    "torch",
    "accelerate",
    "transformers",
    "datasets",
    "evaluate",
    "jsonargparse",
    "rich",
    "sklearn",
    "matplotlib",
    "jinja2",
    "datasketch",
)


def is_main_process() -> bool:
    """Return whether this process speaks for all, before there is an Accelerator to ask."""
    return os.environ.get("RANK", "0") == "0"


def exit_status(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command, print its error as one message, and return the exit status.

    0 done, 1 training failed, 2 bad input, 128 + n stopped by signal n.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {', '.join(missing)} not installed; pip install 'rawloop[train]'", file=sys.stderr)
        return 2

    from serve.contract.errors import InputError
    from train_loop.interrupt import Interrupted
    from train_loop.loop import NonFiniteLoss

    speaks = is_main_process()
    try:
        command(argv)
    except (InputError, NonFiniteLoss) as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Interrupted as stop:
        if speaks:
            print(stop, file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        if speaks:
            print("Stopped; the newest checkpoint, if there is one yet, goes on by --resume.", file=sys.stderr)
        return 128 + signal.SIGINT
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if speaks:
            print(f"error: {error}; free some disk space, then run again or --resume", file=sys.stderr)
        return 2
    return 0
