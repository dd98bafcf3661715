"""A service under uvicorn: signals, a graceful end, and an exit status that says why it ended.

SIGTERM and Ctrl-C: readiness goes off and answers ask their connections to close, while requests are still
taken for `drain_delay_s`; then no more are, and what was accepted is answered. A second signal ends at once.
SIGHUP reloads the bundle.
"""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

from serve.batching.request_errors import Conflict
from serve.contract.errors import InputError, first_line

if TYPE_CHECKING:
    import uvicorn

    from serve.http.lifecycle import Service
    from serve.http.settings import ServeSettings

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25
BACKLOG = 4096
"""Connections that may wait to be accepted."""
KEEP_ALIVE_S = 75
"""How long an idle connection stays open; longer than balancers keep theirs, so that they close first."""


def run_server(settings: "ServeSettings") -> int:
    """Serve until told to stop, and return the exit status: 0 stopped, 1 broken.

    Raises:
        InputError: the bundle cannot be served, the address is not to be had, or the certificate is none.
    """
    import uvloop  # extra `server`

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: "ServeSettings") -> int:
    import uvicorn

    from serve.http.app import build_app
    from serve.http.lifecycle import Service
    from serve.http.loading import load_engine
    from serve.http.metrics import Metrics

    metrics = Metrics()
    service = Service(settings, lambda folder: load_engine(folder, settings, metrics, service.worker_died), metrics)
    with _bound_socket(settings) as listener:
        is_forced = False
        try:
            await service.start()  # before the port listens: what cannot answer must not look like a server
            server = uvicorn.Server(_uvicorn_config(build_app(service), settings))
            server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]  # ours do more
            with _address_errors(settings):
                listener.listen(BACKLOG)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            told_to_stop, told_to_reload = _heed_signals(serving)
            watcher = asyncio.create_task(_watch(server, service, told_to_stop, told_to_reload))
            _announce(service, listener)  # whoever reads this may connect, or send signals, at once
            await asyncio.wait([serving])
            watcher.cancel()
            is_forced = serving.cancelled()
            if not is_forced:
                serving.result()
            is_broken = service.is_broken
        finally:
            await service.stop(0.0 if is_forced else settings.drain_timeout_s)
    return 1 if is_broken else 0


def _uvicorn_config(app: object, settings: "ServeSettings") -> "uvicorn.Config":
    import uvicorn

    config = uvicorn.Config(
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
    try:
        config.load()
    except OSError as error:  # ssl's errors are among them
        raise InputError(
            f"--tls_cert {settings.tls_cert} --tls_key {settings.tls_key}: {first_line(error)}; "
            "give the PEM files of a certificate chain and of its own private key"
        ) from error
    return config


def _bound_socket(settings: "ServeSettings") -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _address_errors(settings):
            listener.bind((settings.host, settings.port))
    except InputError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _address_errors(settings: "ServeSettings") -> Iterator[None]:
    """Turn what the system says of an address into what the user can do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            way_out = "choose another port, or 0 for any"
        else:
            way_out = "choose an address of this machine, such as 127.0.0.1, or 0.0.0.0 for every one"
        raise InputError(f"--host {settings.host} --port {settings.port}: {error.strerror}; {way_out}") from error


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


def _heed_signals(serving: "asyncio.Task[None]") -> tuple[asyncio.Event, asyncio.Event]:
    """Return events that signals set: stop, which the second time cancels `serving`, and reload."""
    loop = asyncio.get_running_loop()
    told_to_stop, told_to_reload = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if told_to_stop.is_set():  # the second time: now, whoever is still connected
            serving.cancel()
        told_to_stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, told_to_reload.set)
    return told_to_stop, told_to_reload


async def _watch(
    server: "uvicorn.Server", service: "Service", told_to_stop: asyncio.Event, told_to_reload: asyncio.Event
) -> None:
    """Act on what signals told, and end a server whose workers are gone."""
    reloads = asyncio.create_task(_reload_when(told_to_reload, service))
    while not told_to_stop.is_set() and not service.is_broken:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(told_to_stop.wait(), CHECK_EVERY_S)
    reloads.cancel()
    if not service.is_broken:
        logger.info("stopping: no more requests in %.1f s", service.settings.drain_delay_s)
        service.is_draining = True
        await asyncio.sleep(service.settings.drain_delay_s)
    server.should_exit = True


async def _reload_when(told: asyncio.Event, service: "Service") -> None:
    """Reload for every signal; one that comes during a reload is answered by another after it."""
    while True:
        await told.wait()
        told.clear()
        try:
            await service.reload()
        except Conflict as error:
            logger.error("reload refused: %s", error)
        except InputError:
            pass  # the service has logged why
