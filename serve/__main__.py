"""Serve a bundle over HTTP.

python -m serve --bundle runs/latest/onnx --port 8000
python -m serve --help
"""

import sys
from collections.abc import Sequence

NEEDED = ("fastapi", "fastapi_offline", "pydantic", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit status: 0 stopped, 1 broken, 2 bad input."""
    from serve.contract.command import given_arguments, run_command

    return run_command(lambda: _serve(given_arguments(argv)), needs=NEEDED, extra="cpu,server")


def _serve(argv: Sequence[str]) -> int:
    from serve.http.observability.logs import set_up_logs
    from serve.http.settings import parse_settings

    settings = parse_settings(argv)  # first: --help need not wait for the server's imports
    from serve.http.server import run_server

    set_up_logs(settings.log_level, as_json=settings.log_json)
    return run_server(settings)


if __name__ == "__main__":
    sys.exit(main())
