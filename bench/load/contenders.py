"""Options of the load benchmark, and the servers they name: ours, peers, those that run already; and their formats."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from bench.harness.arena import Entrant
from bench.harness.hardware import num_gpus
from bench.harness.options import CommonOptions
from serve.batching.request_errors import InvalidRequest
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError
from serve.contract.field_limits import POSITIVE
from serve.encoder import TextInput
from serve.session import resolve_device

LITSERVE_SCRIPT = Path(__file__).with_name("litserve_server.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions(CommonOptions):
    """Load: live servers under many clients."""

    benchmark = "load"

    run: Path
    """Run directory: its held-out rows are sent, peers serve its model, and ours serves RUN/onnx."""
    bundle: Path | None = None
    """Bundle to serve; null takes RUN/onnx, or none where --targets are named and there is no RUN/onnx."""
    targets: list[str] = dataclasses.field(default_factory=list)
    """Servers that run already: NAME=FORMAT@URL; formats: native, tei, hf, infinity, litserve, open_inference, grpc."""
    litserve_python: Path | None = None
    """Python that has LitServe; null takes this one."""
    infinity_python: Path | None = None
    """Python that has infinity_emb; null takes this one."""
    clients: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Numbers of clients of the closed loop."""
    p99_bound_ms: Annotated[float, POSITIVE] = 100.0
    """Find the highest rate at which the 99th percentile of latency stays within this bound."""


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """How a server is asked for the label of a text."""

    path: str  # where such servers listen, for a URL that names none; empty: it must name one
    body: Callable[[TextInput], Any]  # text, or pair -> body of one request
    label: Callable[[Any], str]  # answer -> predicted label
    takes_pairs: bool = False
    write: Callable[[Any], bytes] = lambda body: json.dumps(body).encode()
    read: Callable[[bytes], Any] = json.loads

    def request_of(self, text: TextInput) -> bytes:
        return self.write(self.body(text))

    def label_of(self, answer: bytes) -> str:
        """Return the label of an answer; raises ValueError if it has another format."""
        try:
            return self.label(self.read(answer))
        except (ValueError, LookupError, TypeError, InvalidRequest) as error:
            start = answer[:80].decode(errors="replace")
            raise ValueError(f"its answers do not have the format it was named with, such as: {start}") from error


def _best(scores: list[dict[str, Any]]) -> str:
    return str(max(scores, key=lambda entry: entry["score"])["label"])


def _message(body: dict[str, Any]) -> bytes:
    from serve.http.protocols import open_inference, open_inference_grpc  # needs the extra `grpc`

    raw = [open_inference.joined(part.encode() for part in tensor.pop("data")) for tensor in body["inputs"]]
    request = open_inference_grpc.messages()["ModelInferRequest"](**body, raw_input_contents=raw)
    return bytes(request.SerializeToString())


def _response(answer: bytes) -> Any:
    from serve.http.protocols.open_inference_grpc import parsed

    return parsed("ModelInferResponse", answer)


def _infer_body(text: TextInput) -> dict[str, Any]:
    texts = [text] if isinstance(text, str) else text
    columns = zip(("text", "text_pair"), texts, strict=False)
    tensors = [{"name": name, "shape": [1], "datatype": "BYTES", "data": [part]} for name, part in columns]
    return {"inputs": tensors, "outputs": [{"name": "label"}]}


FORMATS = {
    "native": WireFormat(
        "/v1/classify",
        lambda text: {"inputs": [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}]},
        lambda answer: str(answer["results"][0]["label"]),
        takes_pairs=True,
    ),
    "tei": WireFormat(
        "/predict",
        lambda text: {"inputs": text if isinstance(text, str) else [text]},
        lambda answer: _best(answer if isinstance(answer[0], dict) else answer[0]),
        takes_pairs=True,
    ),
    "hf": WireFormat("/", lambda text: {"inputs": text}, lambda answer: _best(answer[0])),
    "infinity": WireFormat(
        "/classify", lambda text: {"model": "m", "input": [text]}, lambda answer: _best(answer["data"][0])
    ),
    "litserve": WireFormat("/predict", lambda text: {"input": text}, lambda answer: str(answer["label"])),
    "open_inference": WireFormat(
        "", _infer_body, lambda answer: str(answer["outputs"][0]["data"][0]), takes_pairs=True
    ),
    "grpc": WireFormat(
        "",
        _infer_body,
        lambda response: str(response.raw_output_contents[0][4:].decode()),  # after its length
        takes_pairs=True,
        write=_message,
        read=_response,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """A server that the benchmark starts by a command, or one that runs already at a URL."""

    format: str  # key of `FORMATS`
    command: Sequence[str] = ()  # the word PORT is replaced by the port
    url: str = ""
    python_flag: str = ""  # that names a Python which has a peer's packages


def server_entrants(options: LoadOptions) -> list[Entrant]:
    """Return the servers to measure; raises InputError for a bad bundle or target, and if two share a name."""
    entrants = [*_own_servers(options), *_peers(options), *map(running_server, options.targets)]
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise InputError(f"--targets: two servers have the same name among {names}; name them differently")
    return entrants


def _own_servers(options: LoadOptions) -> Iterator[Entrant]:
    folder = options.bundle or options.run / "onnx"
    if options.bundle is None and options.targets and not folder.exists():
        return
    for variant in dict.fromkeys([read_bundle(folder).default_variant(resolve_device("auto")), "fp32"]):
        flags = ("--bundle", str(folder.resolve()), "--variant", variant, "--threads", str(options.num_threads))
        command = (sys.executable, "-m", "serve", *flags, "--port", "PORT", "--log_level", "warning")
        spec = ServerSpec(format="native", command=command)
        yield Entrant(name=f"rawloop {variant}", spec=spec, is_ours=True)


def _peers(options: LoadOptions) -> Iterator[Entrant]:
    model = str((options.run / "model").resolve())
    command = [str(options.litserve_python or sys.executable), str(LITSERVE_SCRIPT), model, "PORT"]
    yield Entrant(name="LitServe", spec=ServerSpec(format="litserve", command=command, python_flag="litserve_python"))
    script = str(Path(options.infinity_python or sys.executable).parent / "infinity_emb")
    flags = ("--model-id", model, "--engine", "torch", "--device", "cuda" if num_gpus() else "cpu", "--port", "PORT")
    command = [script, "v2", *flags, "--served-model-name", "m", "--no-bettertransformer"]
    yield Entrant(name="infinity", spec=ServerSpec(format="infinity", command=command, python_flag="infinity_python"))


def running_server(target: str) -> Entrant:
    """Return the server of `NAME=FORMAT@URL`; raises InputError if it is none, or has an unknown format."""
    name, _, rest = target.partition("=")
    kind, _, url = rest.partition("@")
    parts = urlsplit(url)
    schemes = ("grpc",) if kind == "grpc" else ("http", "https")
    has_path = parts.path not in ("", "/")
    is_known = kind in FORMATS and parts.scheme in schemes and (has_path or FORMATS[kind].path)
    if not name or not is_known or not parts.netloc:
        raise InputError(
            f"--targets {target!r}: expected NAME=FORMAT@URL with one of {', '.join(FORMATS)}, such as "
            "mine=tei@http://127.0.0.1:8080, mine=open_inference@http://127.0.0.1:8000/v2/models/MODEL/infer or "
            "mine=grpc@grpc://127.0.0.1:8001/MODEL"
        )
    if not has_path:
        url = url.rstrip("/") + FORMATS[kind].path
    return Entrant(name=name, spec=ServerSpec(format=kind, url=url))
