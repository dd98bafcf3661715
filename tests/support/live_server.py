"""A server in a thread of the test's process, on a free port, with a tiny bundle whose answers are known."""

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import requests
import uvicorn
from hub_server import online
from tiny_bundles import save_tiny_bundle

from serve.batching.engine import Engine
from serve.contract.bundle import read_bundle, write_manifest
from serve.encoder import Encoder
from serve.http.app import build_app
from serve.http.connection import Connection
from serve.http.lifecycle import Models, Service
from serve.http.loading import load_engine, shared_cores
from serve.http.observability.traces import Traces
from serve.http.server import _bound_socket, _start_grpc_server
from serve.http.settings import ServeSettings
from serve.session import Session

TIMEOUT_S = 120


def save_served_bundle(folder: Path, **options: Any) -> Path:
    """Write a tiny bundle that answers its canary correctly, and return its folder."""
    bundle = read_bundle(save_tiny_bundle(folder, **options))
    manifest = bundle.manifest
    first, *second = manifest.canary
    encoder = Encoder.from_bundle(bundle)
    logits = Session(bundle.graph("fp32")).run(encoder.pad(encoder.encode([(first, second[0]) if second else first])))
    variant = dataclasses.replace(manifest.variants["fp32"], canary_logits=tuple(logits[0].tolist()))
    write_manifest(folder, dataclasses.replace(manifest, variants={"fp32": variant}))
    return folder


def until(condition: Callable[[], Any]) -> None:
    """Wait for what comes soon, such as counting, which is done after the answer."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@dataclasses.dataclass
class LiveServer:
    """A running server, from outside and from inside."""

    url: str
    models: Models
    loop: asyncio.AbstractEventLoop
    connections: set[Any]
    """Those that are open."""
    grpc_address: str = ""
    """Where it speaks gRPC, if it was given a grpc_port."""

    @property
    def service(self) -> Service:
        """The first model, or the only one."""
        return self.models.services[0]

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=TIMEOUT_S, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=TIMEOUT_S, **options)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run a coroutine function in the server's event loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(TIMEOUT_S)

    def wrap_runners(self, wrap: Callable[[Any], Any]) -> None:
        """Wrap every session."""
        for worker in self.service.engine.batcher.workers:
            worker.runner = wrap(worker.runner)


@contextlib.contextmanager
def live_server(
    bundle: Path | Mapping[str, Path],
    *,
    load: Callable[[Path], Engine] | None = None,
    idle_s: float = 75,
    **settings: Any,
) -> Iterator[LiveServer]:
    """Serve a bundle, or several by name, until the block ends.

    `load` replaces `load_engine`; idle connections end after `idle_s`.
    """
    started = threading.Event()
    state: dict[str, Any] = {}

    async def serve() -> None:
        own: dict[str, Any] = {"bundle": bundle, "device": "cpu", "threads": 2, "drain_timeout_s": 5.0}
        given = ServeSettings(**(own | settings))
        loads = partial(load_engine, cores=shared_cores(given)) if load is None else lambda folder, *rest: load(folder)
        models = Models.of(given, loads)
        grpc_server, grpc_address = None, ""
        traces = Traces(given.otlp_endpoint)
        try:
            await models.start()
            if given.grpc_port is not None:
                with _bound_socket(given, "grpc_port") as place:
                    grpc_address = f"127.0.0.1:{place.getsockname()[1]}"
                    grpc_server = await _start_grpc_server(models, traces, place)
            server = uvicorn.Server(
                uvicorn.Config(
                    build_app(models, traces),
                    port=0,
                    loop="none",
                    http=Connection,
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    timeout_keep_alive=idle_s,  # type: ignore[arg-type]  # a fraction works as well
                    access_log=False,
                )
            )
            server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
            serving = asyncio.create_task(server.serve())
            while not server.started:
                await asyncio.sleep(0.005)
            port = server.servers[0].sockets[0].getsockname()[1]
            state.update(
                server=server,
                live=LiveServer(
                    f"http://127.0.0.1:{port}",
                    models,
                    asyncio.get_running_loop(),
                    server.server_state.connections,
                    grpc_address,
                ),
            )
            started.set()
            await serving
        finally:
            if grpc_server is not None:
                await grpc_server.stop(5.0)
            await models.stop(timeout_s=5.0)
            await asyncio.to_thread(traces.close)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            state["error"] = error
            started.set()

    thread = threading.Thread(target=run, name="live-server")
    thread.start()
    started.wait(TIMEOUT_S)
    try:
        if "error" in state:
            raise state["error"]
        yield state["live"]
    finally:
        if "server" in state:
            state["server"].should_exit = True
        thread.join(TIMEOUT_S)


@contextlib.contextmanager
def huggingface_client(url: str) -> Iterator[Any]:
    """Yield huggingface_hub's client of a server."""
    import huggingface_hub

    with online():
        yield huggingface_hub.InferenceClient(model=url)
