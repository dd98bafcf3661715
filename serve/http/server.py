"""The server process: uvicorn, signals, graceful shutdown, and an exit status that says how it ended.

On SIGTERM or Ctrl-C, readiness goes off and answers ask for their connections to be closed, while requests are still
accepted for `drain_delay_s`; then no more are, and those accepted are answered. A second signal ends at once. SIGHUP
reloads the bundles.
"""

import asyncio
import contextlib
import errno
import gc
import importlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

import uvicorn
import uvloop

from serve.batching.request_errors import Conflict
from serve.contract.errors import InputError, first_line
from serve.http.app import build_app
from serve.http.connection import Connection
from serve.http.lifecycle import Models, Service
from serve.http.loading import load_engine, shared_cores
from serve.http.observability.traces import Traces
from serve.http.settings import ServeSettings
from serve.providers import import_onnxruntime

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25
BACKLOG = 4096  # connections that may wait to be accepted
MAX_FILES = 65_536
PortSetting = Literal["port", "grpc_port"]
KEEP_ALIVE_S = 75  # how long an idle connection stays open; longer than load balancers do, so that they close first


def run_server(settings: ServeSettings) -> int:
    """Serve until a signal ends it, and return the exit status: 0 stopped, 1 broken.

    Raises:
        InputError: the bundle cannot be served, the address is not available, or the certificate is not valid.
    """
    # The event loop waits up to this long, several times a request, for a thread that runs Python: not for 5 ms.
    sys.setswitchinterval(0.001)
    _allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


def _allow_many_connections() -> None:
    """Raise the soft limit of open files, commonly 1,024: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(settings: ServeSettings) -> int:
    traces = Traces(settings.otlp_endpoint)
    models = Models.of(settings, partial(load_engine, cores=shared_cores(settings)))
    with _bound_socket(settings) as listener, _grpc_place(settings) as grpc_place:
        is_forced = False
        grpc_server = None
        try:
            import_onnxruntime()
            gc.collect()
            # Else each full collection, of which long replies cause some, looks at every import: 40 ms. Models come
            # after it: what is frozen is never freed, and a reload replaces them.
            gc.freeze()
            await models.start()  # before the port listens: no one should connect to what cannot answer
            server = uvicorn.Server(_uvicorn_config(build_app(models, traces), settings))
            server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]  # see _handle_signals
            if grpc_place is not None:
                grpc_server = await _start_grpc_server(models, traces, grpc_place)
            with _address_errors(settings):
                listener.listen(BACKLOG)
            serving = asyncio.create_task(_serve_both(server, listener, grpc_server, settings.drain_timeout_s))
            must_stop, must_reload = _handle_signals(serving)
            watcher = asyncio.create_task(_watch(server, grpc_server, models, must_stop, must_reload))
            _announce(models, listener)  # from here on, clients may connect and signals are handled
            await asyncio.wait([serving])
            watcher.cancel()
            is_forced = serving.cancelled()
            if not is_forced:
                serving.result()
            is_broken = models.is_broken
        finally:
            if grpc_server is not None:
                await grpc_server.stop(None)
            await models.stop(0.0 if is_forced else settings.drain_timeout_s)
            await asyncio.to_thread(traces.close)
    return 1 if is_broken else 0


async def _serve_both(server: uvicorn.Server, listener: socket.socket, grpc_server: Any, drain_s: float) -> None:
    """Serve HTTP, and gRPC if there is such a server, until both have answered what they accepted."""
    await server.serve(sockets=[listener])
    if grpc_server is not None:
        await grpc_server.stop(drain_s)  # waits: `_watch` has asked it to stop


def _grpc_place(settings: ServeSettings) -> contextlib.AbstractContextManager[socket.socket | None]:
    """Return a socket that keeps the port for gRPC while the model is loaded; raises InputError as `run_server`."""
    if settings.grpc_port is None:
        return contextlib.nullcontext()
    try:
        importlib.import_module("serve.http.grpc_server")
    except ModuleNotFoundError as error:
        raise InputError(
            f"--grpc_port {settings.grpc_port}: the module {error.name} is missing; "
            "pip install 'rawloop[cpu,server,grpc]' (for a GPU: gpu instead of cpu)"
        ) from error
    return _bound_socket(settings, "grpc_port")


async def _start_grpc_server(models: Models, traces: Traces, place: socket.socket) -> Any:
    from serve.http.grpc_server import start_grpc_server  # needs the extra `grpc`

    host, port = place.getsockname()[:2]
    place.close()  # gRPC binds by itself
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    server = await start_grpc_server(models, traces, address)
    logger.info("gRPC on %s", address, extra={"grpc_address": address})
    return server


def _uvicorn_config(app: object, settings: ServeSettings) -> uvicorn.Config:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn spells the same types differently
        loop="uvloop",
        http=Connection,
        ws="none",
        lifespan="off",  # the service has already started
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    try:
        config.load()
    except OSError as error:  # including ssl's errors
        raise InputError(
            f"--tls_cert {settings.tls_cert} --tls_key {settings.tls_key}: {first_line(error)}; "
            "pass the PEM files of a certificate chain and of its private key"
        ) from error
    return config


def _bound_socket(settings: ServeSettings, setting: PortSetting = "port") -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _address_errors(settings, setting):
            listener.bind((settings.host, getattr(settings, setting)))
    except InputError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _address_errors(settings: ServeSettings, setting: PortSetting = "port") -> Iterator[None]:
    """Turn an OSError about the address into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            way_out = "choose another port, or 0 for any"
        else:
            way_out = "choose an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all"
        raise InputError(
            f"--host {settings.host} --{setting} {getattr(settings, setting)}: {error.strerror}; {way_out}"
        ) from error


def _announce(models: Models, listener: socket.socket) -> None:
    served = [service.engine.facts for service in models.services]
    host, port = listener.getsockname()[:2]
    scheme = "https" if models.settings.tls_cert else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    shown = ", ".join(f"{facts.name} {facts.version} ({facts.variant}, {facts.provider})" for facts in served)
    places = f"{url}; page: {url}/ui, documentation: {url}/docs"
    verb = "serves" if len(served) == 1 else "serve"
    logger.info("%s %s on %s", shown, verb, places, extra={"url": url, "provider": served[0].provider})


def _handle_signals(serving: "asyncio.Task[None]") -> tuple[asyncio.Event, asyncio.Event]:
    """Return two events that signals set: stop, whose second signal cancels `serving`, and reload."""
    loop = asyncio.get_running_loop()
    must_stop, must_reload = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if must_stop.is_set():  # the second signal: stop now, whoever is still connected
            serving.cancel()
        must_stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, must_reload.set)
    return must_stop, must_reload


async def _watch(
    server: uvicorn.Server, grpc_server: Any, models: Models, must_stop: asyncio.Event, must_reload: asyncio.Event
) -> None:
    """Act on signals, and end a server whose workers are gone."""
    reloads = asyncio.create_task(_reload_when(must_reload, models.services))
    while not must_stop.is_set() and not models.is_broken:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(must_stop.wait(), CHECK_EVERY_S)
    reloads.cancel()
    if not models.is_broken:
        logger.info("stopping: no more requests in %.1f s", models.settings.drain_delay_s)
        models.drain()
        await asyncio.sleep(models.settings.drain_delay_s)
    server.should_exit = True
    if grpc_server is not None:
        await grpc_server.stop(models.settings.drain_timeout_s)


async def _reload_when(must_reload: asyncio.Event, services: Iterable[Service]) -> None:
    """Reload all models at every signal; one that comes during a reload causes another after it."""
    while True:
        await must_reload.wait()
        must_reload.clear()
        for service in services:
            try:
                await service.reload()
            except Conflict as error:
                logger.error("reload of %s refused: %s", service.name, error)
            except InputError:
                pass  # already logged by the service
