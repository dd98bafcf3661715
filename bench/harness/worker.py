"""The process of one contender: `python -m bench.harness.worker SPEC.json`, started by `processes.py`.

It connects to the socket named in the specification and answers one command after the other. Under
torchrun, rank 0 alone speaks.
"""

import importlib
import json
import os
import sys
import traceback
from multiprocessing.connection import Client
from pathlib import Path

from bench.harness.session import ContenderWorker, NotAvailable, Session
from serve.contract.errors import first_line


def main(argv: list[str]) -> int:
    """Run the contender of a specification; return the exit status."""
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    is_first = os.environ.get("RANK", "0") == "0"
    session = Session(Client(spec["address"], "AF_UNIX")) if is_first else None
    try:
        module, _, name = spec["worker"].partition(":")
        worker: ContenderWorker = getattr(importlib.import_module(module), name)(**spec["settings"])
        worker.serve(session)
    except Exception as error:
        traceback.print_exc()
        if session is not None:
            status = "not available" if isinstance(error, NotAvailable) else "failed"
            session.answer(error=first_line(error), status=status)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
