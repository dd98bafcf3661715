"""What a contender's process and the benchmark say to each other: commands and answers, one JSON object each."""

import json
import resource
from multiprocessing.connection import Connection
from typing import Any

Message = dict[str, Any]


class NotAvailable(RuntimeError):
    """The contender cannot run on this machine or in this environment; the message says why."""


class Session:
    """The worker's end of the line to the benchmark."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._connection = connection

    def next_command(self) -> Message | None:
        """Wait for a command; None when there are no more."""
        try:
            message: Message = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):  # the benchmark has gone
            return None
        return message if message["verb"] != "close" else None

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
        """Return the resident memory of this process, now and at its peak [MiB]."""
        import psutil

        return {
            "memory_mib": psutil.Process().memory_info().rss / 2**20,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        }
