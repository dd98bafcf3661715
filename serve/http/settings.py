"""Settings of a server: one frozen dataclass, filled from flags and RAWLOOP_* variables. A flag wins.

`--max_queued_tokens 1000` and `RAWLOOP_MAX_QUEUED_TOKENS=1000` mean the same. argparse splits the command line into
flags, pydantic parses and checks the values.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from serve.contract.drift import MIN_TEXTS
from serve.contract.errors import InputError
from serve.contract.field_limits import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, Limit, out_of_range

PREFIX = "RAWLOOP_"
KEYS = ("api_keys", "api_keys_file", "admin_keys")
GROUPS = {
    "bundle": "model",
    "host": "network",
    "threads": "batching",
    "request_timeout_ms": "limits",
    "canary_interval_s": "health",
    "otlp_endpoint": "logs and traces",
}
"""First field of a group -> title of the group in --help."""

OF_VERTEX_AI = {"AIP_HTTP_PORT": "port", "AIP_PREDICT_ROUTE": "predict_route", "AIP_HEALTH_ROUTE": "health_route"}
"""Variables that Vertex AI sets; ours win."""

ROUTE = Limit(lambda path: path.startswith("/") and "{" not in path, "a path, such as /predict")
ROOT_PATH = Limit(
    lambda path: bool(re.fullmatch(r"(?!.*/models/[^/]*$)(/[\w.~-]+)*", path)),
    "a path, such as /prefix, without a slash at its end, and not /models/NAME, which is a model's",
)
WINDOW = Limit(lambda texts: texts == 0 or texts >= MIN_TEXTS, f"at least {MIN_TEXTS}, or 0 for none")
URL = Limit(lambda url: url.startswith(("http://", "https://")), "a URL, such as http://localhost:4318")
PORT = Limit(lambda port: 0 <= port <= 65_535, "from 0 (any free one) to 65535")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Several values in one flag or variable, separated by commas."""
Numbers = Annotated[tuple[int, ...], BeforeValidator(_split)]

NAME = r"[A-Za-z0-9._-]+"


def _by_name(value: Any) -> Any:
    """Return name -> folder of `DIR`, whose name is "", of `a=DIR,b=DIR`, or of a list of such texts."""
    if isinstance(value, Mapping):
        return value
    parts: list[str] = []
    for text in map(str, value if isinstance(value, list) else [value]):
        parts += re.split(rf",(?={NAME}=)", text) if re.match(f"{NAME}=", text) else [text]
    pairs = [(found[1], found[2]) if (found := re.fullmatch(f"({NAME})=(.+)", part)) else ("", part) for part in parts]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or (len(names) > 1 and "" in names):
        raise InputError(
            f"--bundle {' --bundle '.join(parts)}: each of several bundles needs a name of its own; write "
            "--bundle NAME=DIR --bundle OTHER=DIR"
        )
    return dict(pairs)


Folders = Annotated[dict[str, Path], BeforeValidator(_by_name)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(use_attribute_docstrings=True))  # the docstrings are the help
class ServeSettings:
    """One server. Times are in the unit that ends the name."""

    bundle: Folders
    """folder written by python -m export; several: --bundle NAME=DIR --bundle OTHER=DIR, or commas between them"""
    model_name: str | None = None
    """name to serve under; the bundle's own unless set"""
    variant: Literal["fp32", "int8", "fp16"] | None = None
    """graph to run; the bundle's default for the device unless set"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run: auto takes a GPU if there is one; cuda fails if there is none"""
    devices: Numbers = ()
    """GPUs to run on, counted from 0 among those that CUDA sees; the first unless set"""
    gpu_memory_limit_mib: Annotated[int | None, AT_LEAST_1] = None
    """most memory of each GPU for weights and activations, in MiB; no limit unless set"""
    cuda_graphs: bool = False
    """on GPUs, record the kernels of up to 64 shapes while loading, and replay them"""
    tensorrt: bool = False
    """on GPUs, run a bundle exported with --no_fusion on TensorRT"""
    max_length: Annotated[int | None, AT_LEAST_1] = None
    """longest input in tokens; the model's own limit unless set"""

    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all"""
    port: Annotated[int, PORT] = 8000
    """port to listen on"""
    grpc_port: Annotated[int | None, PORT] = None
    """port of the Open Inference Protocol over gRPC; closed unless set"""
    predict_route: Annotated[str | None, ROUTE] = None
    """further path that takes `instances`, as Vertex AI wants it (also AIP_PREDICT_ROUTE)"""
    health_route: Annotated[str | None, ROUTE] = None
    """further path that says whether to send traffic (also AIP_HEALTH_ROUTE)"""
    root_path: Annotated[str, ROOT_PATH] = ""
    """prefix under which a proxy shows this server, such as /models-of-ours; removed from paths that have it"""
    tls_cert: Path | None = None
    """PEM file of the certificate chain: serve HTTPS"""
    tls_key: Path | None = None
    """PEM file of its private key"""
    cors_origins: Words = ()
    """origins that browsers may call from, or *"""
    api_keys: Words = ()
    """keys for clients, any of which opens; several, so that they can be rotated"""
    api_keys_file: Path | None = None
    """more of them, one a line; read again on reload"""
    admin_keys: Words = ()
    """keys for /admin, which is closed without one"""

    threads: Annotated[int | None, AT_LEAST_1] = None
    """CPU cores to use; all that this process may use unless set"""
    narrow_workers: Annotated[int | None, NOT_NEGATIVE] = None
    """single-threaded workers for a deep queue; one per core unless set, 0 on a GPU"""
    max_batch_rows: Annotated[int | None, AT_LEAST_1] = None
    """inputs in a batch on the wide session; 64 unless set, 512 on a GPU"""
    max_batch_tokens: Annotated[int | None, AT_LEAST_1] = None
    """tokens in it, padding included; 16384 unless set"""
    narrow_batch_rows: Annotated[int | None, AT_LEAST_1] = None
    """inputs in a batch on a narrow session; 8 unless set, none on a GPU"""
    narrow_batch_tokens: Annotated[int | None, AT_LEAST_1] = None
    """tokens in it, padding included; 1024 unless set, none on a GPU"""
    max_queued_tokens: Annotated[int | None, AT_LEAST_1] = None
    """tokens that may wait, more are refused (429); 65536 unless set, 1048576 on a GPU"""

    request_timeout_ms: Annotated[int, AT_LEAST_1] = 10_000
    """time for an answer when there is no X-Request-Timeout-Ms"""
    max_request_timeout_ms: Annotated[int, AT_LEAST_1] = 60_000
    """most that X-Request-Timeout-Ms may ask for"""
    max_inputs: Annotated[int, AT_LEAST_1] = 256
    """texts or pairs in one request"""
    max_text_chars: Annotated[int, AT_LEAST_1] = 100_000
    """characters in one text"""
    max_payload_bytes: Annotated[int, AT_LEAST_1] = 2_000_000
    """bytes in the body of a request"""

    canary_interval_s: Annotated[float, POSITIVE] = 10.0
    """time between two checks of a text with a known answer"""
    canary_timeout_s: Annotated[float, POSITIVE] = 10.0
    """time for its answer"""
    stall_after_s: Annotated[float, POSITIVE] = 10.0
    """a batch that runs longer turns readiness off"""
    drift_window: Annotated[int, WINDOW] = 500
    """texts answered last that are compared with those of the export, for drift"""
    on_worker_death: Literal["restart", "exit"] = "restart"
    """what to do when a worker dies"""
    drain_delay_s: Annotated[float, NOT_NEGATIVE] = 1.0
    """time after SIGTERM in which requests are still accepted, while the balancer takes notice"""
    drain_timeout_s: Annotated[float, NOT_NEGATIVE] = 30.0
    """time to answer what was accepted"""

    otlp_endpoint: Annotated[str | None, URL] = None
    """OpenTelemetry collector that gets a trace of every request, such as http://localhost:4318; none unless set"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug may quote texts"""
    log_json: bool = False
    """log one JSON object a line"""
    access_log: bool = False
    """log a line for every request, without its texts"""

    def __post_init__(self) -> None:
        problems = list(out_of_range(self))
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("--tls_cert and --tls_key go together; set both, or neither")
        problems += self._device_problems()
        for name in ("tls_cert", "tls_key", "api_keys_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                problems.append(f"--{name}: no such file: {path}")
        if self.port and self.port == self.grpc_port:
            problems.append(f"--grpc_port {self.grpc_port}: HTTP has this --port; choose another")
        if self.model_name and "" not in self.bundle:
            problems.append(f"--model_name {self.model_name}: --bundle has a name already; leave out one of them")
        if self.model_name and "/" in self.model_name:
            problems.append(
                f"--model_name {self.model_name}: a name with a slash cannot be part of the path /v2/models/NAME; "
                f"write {self.model_name.strip('/').replace('/', '-') or 'a name'}"
            )
        if self.request_timeout_ms > self.max_request_timeout_ms:
            problems.append(
                f"--request_timeout_ms {self.request_timeout_ms} is more than "
                f"--max_request_timeout_ms {self.max_request_timeout_ms}"
            )
        if problems:
            raise InputError("\n".join(problems))

    def _device_problems(self) -> Iterator[str]:
        shown = f"--devices {','.join(map(str, self.devices))}"
        if self.devices and self.device == "cpu":
            yield f"{shown}: the numbers of GPUs; leave it out, or choose --device cuda"
        if any(number < 0 for number in self.devices):
            yield f"{shown}: GPUs are counted from 0; nvidia-smi -L lists them"
        if len(set(self.devices)) < len(self.devices):
            yield f"{shown}: a GPU is named twice; name each once, it serves many requests at a time"


def parse_settings(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> ServeSettings:
    """Return the settings of a command line and its environment. Exits with status 2 on an unknown flag.

    Raises:
        InputError: a variable is unknown, a value has the wrong type or is out of range, or settings contradict each
            other.
    """
    environment = os.environ if environment is None else environment
    fields = TypeAdapter(ServeSettings).json_schema()["properties"]
    of_variable = {PREFIX + name.upper(): name for name in fields}
    flags = vars(_parser(fields).parse_args(argv))
    of_variable = OF_VERTEX_AI | of_variable
    set_in = {of_variable[name]: name for name in of_variable if name in environment}
    variables = {field: environment[name] for field, name in set_in.items()}
    sources = set_in | {name: f"--{name}" for name in flags}
    given = {name: text for name, text in (variables | flags).items() if any(text) or name in KEYS}
    problems = [
        f"{name}: no such setting; --help lists them"
        for name in environment
        if name.startswith(PREFIX) and name not in of_variable
    ]
    if "RAWLOOP_SERVICE_HOST" in environment or environment.get("RAWLOOP_PORT", "").startswith("tcp://"):
        problems.append(
            "Kubernetes sets RAWLOOP_PORT and RAWLOOP_SERVICE_* for a Service named rawloop; write "
            "`enableServiceLinks: false` in the pod's spec, or rename the Service"
        )
    problems += [
        f"{sources[name]}: set, but holds no key; write one, or leave it out"
        for name in KEYS
        if name in given and not given[name].replace(",", " ").strip()  # an empty secret must not open the server
    ]
    try:
        settings = ServeSettings(**given)
    except ValidationError as error:
        raise InputError("\n".join([*problems, *_complaints(error, sources)])) from None
    if problems:
        raise InputError("\n".join(problems))
    return settings


def _complaints(error: ValidationError, sources: Mapping[str, str]) -> Iterator[str]:
    for each in error.errors():
        if isinstance(cause := each.get("ctx", {}).get("error"), InputError):
            yield str(cause)
        elif each["type"] == "missing":
            yield f"--{each['loc'][0]}: pass the folder of a bundle, as written by python -m export"
        else:
            yield f"{sources[str(each['loc'][0])]}: {each['msg']}, found {each['input']!r}"


def _parser(fields: Mapping[str, Any]) -> argparse.ArgumentParser:
    """Return a parser of flags to texts, for the JSON schemas of the fields."""
    parser = argparse.ArgumentParser(
        prog="python -m serve",
        usage="%(prog)s --bundle DIR [--port PORT] [--FLAG VALUE ...]",
        description="Serve a bundle over HTTP. Each flag can also be set by its RAWLOOP_* variable.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        kind = field["anyOf"][0] if "anyOf" in field else field
        options: dict[str, Any] = {"action": "store_const", "const": "true"}
        if kind["type"] == "object":
            options = {"action": "append", "metavar": "[NAME=]DIR"}
        elif kind["type"] != "boolean":
            word = {"array": "A,B"}.get(kind["type"], kind.get("format", kind["type"]).upper())
            options = {"metavar": "{" + ",".join(kind["enum"]) + "}" if "enum" in kind else word}
        shown = f", default {field['default']}" if field.get("default") not in (None, [], False) else ""
        text = f"{field['description']} ({PREFIX}{name.upper()}{shown})"
        group.add_argument(f"--{name}", help=text.replace("%", "%%"), **options)
    return parser
