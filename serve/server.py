"""A service under uvicorn: signals, a graceful end, and an exit status that says why it ended.

SIGTERM and Ctrl-C: readiness goes off and answers ask their connections to close, while requests are still
taken for `drain_delay_s`; then no more are, and what was accepted is answered. A second signal ends at once.
SIGHUP reloads the bundle.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING

from serve.contract.errors import InputError
from serve.request_errors import Conflict

if TYPE_CHECKING:
    import uvicorn

    from serve.service import Service
    from serve.settings import ServeSettings

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25
BACKLOG = 4096
"""Connections that may wait to be accepted."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays open; longer than balancers keep theirs, so that they close first."""


def run_server(settings: "ServeSettings") -> int:
    """Serve until told to stop, and return the exit status: 0 stopped, 1 broken.

    Raises:
        InputError: the bundle cannot be served, or the address is not to be had.
    """
    import uvloop  # extra `server`

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: "ServeSettings") -> int:
    import uvicorn

    from serve.app import build_app
    from serve.loading import load_engine
    from serve.metrics import Metrics
    from serve.service import Service

    metrics = Metrics()
    service = Service(settings, lambda folder: load_engine(folder, settings, metrics, service.worker_died), metrics)
    with _bound_socket(settings.host, settings.port) as listener:
        try:
            await service.start()  # before the port listens: what cannot answer must not look like a server
            server = uvicorn.Server(_uvicorn_config(build_app(service), settings))
            server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]  # ours do more
            watcher = asyncio.create_task(_watch(server, service))
            listener.listen(BACKLOG)  # whoever reads the next line may connect at once
            _announce(service, listener)
            await server.serve(sockets=[listener])
            watcher.cancel()
            is_broken = service.is_broken
        finally:
            await service.stop(settings.drain_timeout_s)
    return 1 if is_broken else 0


def _uvicorn_config(app: object, settings: "ServeSettings") -> "uvicorn.Config":
    import uvicorn

    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn spells the same types in its own way
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",  # the service was started already
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


def _bound_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port, or 0 for any") from error
    return listener


def _announce(service: "Service", listener: socket.socket) -> None:
    settings, facts = service.settings, service.engine.facts
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    logger.info(
        "%s %s (%s, %s) serves on %s; page: %s/ui, documentation: %s/docs",
        facts.name,
        facts.version,
        facts.variant,
        facts.provider,
        url,
        url,
        url,
        extra={"url": url, "provider": facts.provider},
    )


async def _watch(server: "uvicorn.Server", service: "Service") -> None:
    """Act on signals, and end a server whose workers are gone."""
    loop = asyncio.get_running_loop()
    told_to_stop, told_to_reload = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if told_to_stop.is_set():  # the second time: now
            server.force_exit = server.should_exit = True
        told_to_stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, told_to_reload.set)
    while not told_to_stop.is_set() and not service.is_broken:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told_to_stop.wait(), CHECK_EVERY_S)
        if told_to_reload.is_set():
            told_to_reload.clear()
            with contextlib.suppress(InputError, Conflict):  # the service has logged why
                await service.reload()
    if not service.is_broken:
        logger.info("stopping: no more requests in %.1f s", service.settings.drain_delay_s)
        service.is_draining = True
        await asyncio.sleep(service.settings.drain_delay_s)
    server.should_exit = True
