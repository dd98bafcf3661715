"""The process of one contender: `python -m bench.harness.worker SPEC.json`, launched by `processes.py`.

It answers commands over the specification's socket, one JSON object each; under torchrun, only rank 0 does.
"""

import importlib
import json
import re
import sys
import traceback
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from serve.contract.command import is_main_process
from serve.contract.errors import first_line

Message = dict[str, Any]


class Session:
    """The worker's end of the connection to the benchmark."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def next_command(self) -> Message | None:
        """Wait for a command; None when there are no more."""
        try:
            message: Message = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):  # the benchmark has closed it, or has gone
            return None
        return message

    def answer(self, **content: Any) -> None:
        self._connection.send_bytes(json.dumps(content).encode())


class ContenderWorker:
    """What runs in a worker. A command calls the method of its verb, which returns a JSON object."""

    def serve(self, session: Session | None) -> None:
        """Answer commands until there are no more; only rank 0 has a session."""
        assert session is not None, "a contender of several processes has a serve() of its own"
        while (command := session.next_command()) is not None:
            session.answer(**getattr(self, command.pop("verb"))(**command))

    def memory(self) -> Message:
        """Return the resident memory of this process, now and at its peak [MiB].

        Linux counts both in /proc; `ru_maxrss` would begin with the peak of the process that started this one.
        """
        kib = dict(re.findall(r"^Vm(RSS|HWM):\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE))
        return {"memory_mib": int(kib["RSS"]) / 2**10, "peak_memory_mib": int(kib["HWM"]) / 2**10}


def main(argv: list[str]) -> int:
    """Run the contender of a specification; return the exit status."""
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    session = Session(Client(spec["address"], "AF_UNIX")) if is_main_process() else None
    try:
        module, _, name = spec["worker"].partition(":")
        worker: ContenderWorker = getattr(importlib.import_module(module), name)(**spec["settings"])
        worker.serve(session)
    except Exception as error:
        traceback.print_exc()
        if session is not None:
            status = "not installed" if isinstance(error, ModuleNotFoundError) else "failed"
            session.answer(error=first_line(error), status=status)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
