"""Everything a server can be told: one frozen dataclass, filled from flags and RAWLOOP_* variables.

A flag wins over a variable: `--max-queued-tokens 1000` over `RAWLOOP_MAX_QUEUED_TOKENS=1000`.
"""

import argparse
import dataclasses
import math
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from serve.contract.errors import InputError

PREFIX = "RAWLOOP_"
KEYS = ("api_keys", "api_keys_file", "admin_keys")


def setting(default: Any, text: str, group: str, check: str = "") -> Any:
    """Return a dataclass field with its help text; `check` names the range that a number must be in."""
    return dataclasses.field(default=default, metadata={"help": text, "group": group, "check": check})


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "positive": (lambda value: 0 < value < math.inf, "more than 0, and finite"),
    "not negative": (lambda value: 0 <= value < math.inf, "0 or more, and finite"),
    "port": (lambda value: 0 <= value <= 65_535, "from 0 (any free one) to 65535"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """One server. Times are in the unit that ends the name."""

    bundle: Path = dataclasses.field(metadata={"help": "folder written by python -m export", "group": "model"})
    model_name: str | None = setting(None, "name to serve under; the bundle's own", "model")
    variant: Literal["fp32", "int8", "fp16"] | None = setting(None, "graph; the bundle's default for it", "model")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "where to run: cuda fails where there is none, auto takes it where there is", "model"
    )
    max_length: int | None = setting(None, "tokens of an input; the model's own limit", "model", "positive")

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 for every one", "network")
    port: int = setting(8000, "port to listen on", "network", "port")
    tls_cert: Path | None = setting(None, "PEM file of the certificate chain: serve HTTPS", "network")
    tls_key: Path | None = setting(None, "PEM file of its private key", "network")
    cors_origins: tuple[str, ...] = setting((), "origins that browsers may call from, or *", "network")
    api_keys: tuple[str, ...] = setting((), "keys for clients, any of them; several so that they rotate", "network")
    api_keys_file: Path | None = setting(None, "more of them, one a line; read again on reload", "network")
    admin_keys: tuple[str, ...] = setting((), "keys for /admin; without one /admin is shut", "network")

    threads: int | None = setting(None, "processor cores to use; all that this process may", "batching", "positive")
    narrow_workers: int | None = setting(
        None, "sessions of one thread for a deep queue; one a core, 0 on a GPU", "batching", "not negative"
    )
    max_batch_rows: int = setting(64, "inputs of a batch on the wide session", "batching", "positive")
    max_batch_tokens: int = setting(16_384, "tokens of it, padding included", "batching", "positive")
    narrow_batch_rows: int = setting(8, "inputs of a batch on a narrow session", "batching", "positive")
    narrow_batch_tokens: int = setting(1_024, "tokens of it, padding included", "batching", "positive")
    max_queued_tokens: int = setting(65_536, "tokens that may wait; more is refused (429)", "batching", "positive")

    request_timeout_ms: int = setting(10_000, "time for an answer without X-Request-Timeout-Ms", "limits", "positive")
    max_request_timeout_ms: int = setting(60_000, "most that X-Request-Timeout-Ms may ask for", "limits", "positive")
    max_inputs: int = setting(256, "texts or pairs of one request", "limits", "positive")
    max_text_chars: int = setting(100_000, "characters of one text", "limits", "positive")
    max_payload_bytes: int = setting(2_000_000, "bytes of a request's body", "limits", "positive")

    canary_interval_s: float = setting(10.0, "between two checks of a known text", "health", "positive")
    canary_timeout_s: float = setting(10.0, "for its answer", "health", "positive")
    stall_after_s: float = setting(10.0, "a batch that runs longer turns readiness off", "health", "positive")
    on_worker_death: Literal["restart", "exit"] = setting("restart", "what follows a worker's death", "health")
    drain_delay_s: float = setting(
        1.0, "after SIGTERM, still taking requests while the balancer learns of it", "health", "not negative"
    )
    drain_timeout_s: float = setting(30.0, "for the answers to what was accepted", "health", "not negative")

    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "debug may quote texts", "logs")
    log_json: bool = setting(False, "one JSON object a line", "logs")
    access_log: bool = setting(False, "a line for every request, without its texts", "logs")

    def __post_init__(self) -> None:
        problems = []
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), field.metadata.get("check")
            if check and value is not None and not CHECKS[check][0](value):
                problems.append(f"{flag(field.name)} must be {CHECKS[check][1]}, found {value}")
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("--tls-cert and --tls-key go together; give both, or neither")
        for name in ("tls_cert", "tls_key", "api_keys_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                problems.append(f"{flag(name)}: no such file: {path}")
        if self.request_timeout_ms > self.max_request_timeout_ms:
            problems.append(
                f"--request-timeout-ms {self.request_timeout_ms} is more than "
                f"--max-request-timeout-ms {self.max_request_timeout_ms}"
            )
        if problems:
            raise InputError("\n".join(problems))

    def all_api_keys(self) -> tuple[str, ...]:
        """Return the keys of the flag and of the file as it is now; empty where anybody may call.

        Raises:
            InputError: the file cannot be read, or holds no key.
        """
        if self.api_keys_file is None:
            return self.api_keys
        try:
            lines = self.api_keys_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-keys-file: {self.api_keys_file}: {error}") from error
        keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not keys:
            raise InputError(f"--api-keys-file: {self.api_keys_file} holds no key; write one a line")
        return (*self.api_keys, *keys)


def flag(name: str) -> str:
    """Return the flag of a field."""
    return "--" + name.replace("_", "-")


def parse_settings(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ServeSettings:
    """Return the settings of a command line and its environment. Exits with status 2 on an unknown flag.

    Raises:
        InputError: a value is of another type or out of range, or settings contradict each other.
    """
    environment = os.environ if environment is None else environment
    arguments = _parser().parse_args([_with_dashes(word) for word in argv])
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    hints = typing.get_type_hints(ServeSettings)
    values: dict[str, Any] = {}
    problems = []
    for field in dataclasses.fields(ServeSettings):
        variable = PREFIX + field.name.upper()
        where, text = (
            (flag(field.name), given[field.name]) if field.name in given else (variable, environment.get(variable))
        )
        if text is None or (text == "" and field.name not in KEYS):
            continue
        try:
            values[field.name] = _parsed(text, hints[field.name])
        except ValueError as error:
            problems.append(f"{where}: {error}, found {text!r}")
            continue
        if field.name in KEYS and not text.replace(",", " ").strip():  # an empty secret must not open the server
            problems.append(f"{where}: given, and holds no key; write one, or leave it out")
    problems += [
        f"{name}: no such setting; --help lists them"
        for name in environment
        if name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() not in hints
    ]
    if "RAWLOOP_SERVICE_HOST" in environment or environment.get("RAWLOOP_PORT", "").startswith("tcp://"):
        problems.append(
            "Kubernetes sets RAWLOOP_PORT and RAWLOOP_SERVICE_* for a Service named rawloop; write "
            "`enableServiceLinks: false` in the pod's spec, or give the Service another name"
        )
    if "bundle" not in values and not problems:
        problems.append("--bundle: give the folder of a bundle, as written by python -m export")
    if problems:
        raise InputError("\n".join(problems))
    return ServeSettings(**values)


def _with_dashes(word: str) -> str:
    """Return a flag as it is spelled here: those of the other commands have underscores."""
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        usage="%(prog)s --bundle DIR [--port PORT] [--FLAG VALUE ...]",
        description="Serve a bundle over HTTP. Each flag can also be set by its RAWLOOP_* variable.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(ServeSettings):
        group = groups.setdefault(field.metadata["group"], None) or parser.add_argument_group(field.metadata["group"])
        groups[field.metadata["group"]] = group
        options: dict[str, Any] = {"help": f"{field.metadata['help']} ({_origin(field)})", "metavar": _kind(field)}
        if field.type is bool:
            options = {"help": options["help"], "action": "store_const", "const": "true"}
        group.add_argument(flag(field.name), dest=field.name, **options)
    return parser


def _origin(field: "dataclasses.Field[Any]") -> str:
    """Return a field's variable and default, for --help."""
    default = field.default
    shown = "" if default in (None, (), dataclasses.MISSING) else f", default {str(default).lower()}"
    return f"{PREFIX}{field.name.upper()}{shown}".replace("%", "%%")


def _kind(field: "dataclasses.Field[Any]") -> str:
    kind = typing.get_type_hints(ServeSettings)[field.name]
    for branch in typing.get_args(kind) or (kind,):
        if typing.get_origin(branch) is Literal:
            return "{" + ",".join(typing.get_args(branch)) + "}"
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    if typing.get_origin(kind) is tuple:
        return "A,B"
    return {int: "N", float: "SECONDS", str: "NAME", Path: "PATH"}.get((typing.get_args(kind) or (kind,))[0], "VALUE")


def _parsed(text: str, kind: Any) -> Any:
    """Return a flag's or variable's text as its annotation says."""
    origin, branches = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if text not in branches:
            raise ValueError(f"must be one of {', '.join(branches)}")
        return text
    if origin is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if type(None) in branches:
        return _parsed(text, branches[0])
    if kind is bool:
        if text.lower() not in ("true", "1", "yes", "false", "0", "no"):
            raise ValueError("must be true or false")
        return text.lower() in ("true", "1", "yes")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError("must be a whole number" if kind is int else "must be a number") from None
    return kind(text)
