"""Serve a bundle over HTTP.

python -m serve --bundle runs/latest/onnx --port 8000
python -m serve --help
"""

import importlib.util
import sys
from collections.abc import Sequence

NEEDED = ("fastapi", "uvicorn", "uvloop", "httptools", "orjson", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit status: 0 stopped, 1 broken, 2 bad input."""
    # Imported here: the slim installation imports every module.
    from serve.contract.errors import InputError
    from serve.settings import parse_settings

    try:
        settings = parse_settings(sys.argv[1:] if argv is None else argv)
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"{', '.join(missing)} not installed; pip install 'rawloop[cpu,server]' (or gpu for cpu)")

        from serve.logs import set_up_logs
        from serve.server import run_server

        set_up_logs(settings.log_level, as_json=settings.log_json)
        return run_server(settings)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
