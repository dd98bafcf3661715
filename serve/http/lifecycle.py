"""Lifecycle of the served models: load, check by its canary, readiness, reload, stop.

A model is not ready until its canary has been answered, nor after a worker died, a batch stalled or the canary got a
wrong answer, until it is answered again; nor while the server is stopping. The server is ready while a model is.
"""

import asyncio
import dataclasses
import logging
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from serve.batching.engine import CanaryFailed, Engine
from serve.batching.request_errors import Conflict, NotFound, Unavailable
from serve.contract.errors import InputError, first_line
from serve.http.keys import Keys
from serve.http.observability.metrics import Metrics
from serve.http.settings import ServeSettings

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25  # time between checks for stalls and closed batchers, which cost nothing

LoadEngine = Callable[[Path, ServeSettings, Metrics, Callable[[BaseException], None]], Engine]
"""`load_engine`, or what stands in for it. Runs in a thread, since it takes seconds; raises InputError."""


class Service:
    """The state of one model. Everything but `worker_died` belongs to the event loop."""

    def __init__(self, settings: ServeSettings, load: LoadEngine, keys: Keys) -> None:
        self.settings, self.keys, self.metrics = settings, keys, Metrics()
        (self.folder,) = settings.bundle.values()
        self.is_draining = False
        self._load = load
        self._logger = logger.getChild(settings.model_name) if settings.model_name else logger
        self._engine: Engine | None = None
        self._not_ready: str | None = "the model is being loaded"
        self._reloading = asyncio.Lock()
        self._worker_deaths = 0
        self._drifted: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self.settings.model_name or self.engine.facts.name

    @property
    def engine(self) -> Engine:
        """Return the current model; raises Unavailable if none is loaded."""
        if self._engine is None:
            raise Unavailable("the model is being loaded")
        return self._engine

    @property
    def not_ready_because(self) -> str | None:
        """Why no traffic should be sent here; None if it should."""
        return "the server is stopping" if self.is_draining else self._not_ready

    @property
    def is_broken(self) -> bool:
        """Whether the model can never answer again without a reload."""
        return self._engine is not None and not self.is_draining and self._engine.batcher.closed_because is not None

    async def start(self) -> None:
        """Load the model, and keep checking it; raises InputError if it cannot be served, or fails its canary."""
        await self._replace(self.folder)
        self._keep(self._watch())

    async def reload(self, folder: Path | None = None, *, change_problem_type: bool = False) -> None:
        """Replace the current bundle, by default by what its folder holds now, and read the keys again.

        On any failure the old ones stay.

        Raises:
            InputError: the bundle is damaged, cannot be loaded, does not answer its canary or has another problem type
                (refused without `change_problem_type`); or the keys are bad.
            Conflict: another reload is in progress.
        """
        if self._reloading.locked():
            raise Conflict("a reload is in progress; wait for it to end")
        async with self._reloading:
            folder = folder or self.folder
            try:
                keys = Keys(self.settings)
                await self._replace(folder, change_problem_type=change_problem_type)
            except Exception as error:  # whatever goes wrong in a new bundle, the old one stays
                self.metrics.reloads.labels("refused").inc()
                if isinstance(error, InputError):
                    self._logger.error("reload of %s refused: %s", folder, error)
                    raise
                self._logger.exception("reload of %s refused", folder)
                raise InputError(f"{folder}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
            self.folder = folder
            self.keys.become(keys)
            self.metrics.reloads.labels("done").inc()
            self._logger.info("serving %s, version %s", folder, self.engine.facts.version)

    async def stop(self, timeout_s: float) -> None:
        """Answer what was accepted, for `timeout_s` at most, and close the model."""
        self.is_draining = True
        for task in list(self._tasks):
            task.cancel()
        if self._engine is not None:
            await self._engine.close(timeout_s)

    def worker_died(self, error: BaseException) -> None:
        """Turn readiness off until the canary is answered again; called in the dying worker's thread."""
        self._worker_deaths += 1
        self._not_ready = f"a worker died ({type(error).__name__})"
        self.metrics.worker_deaths.inc()

    async def _replace(self, folder: Path, *, change_problem_type: bool = False) -> None:
        resident_bytes = _resident_bytes()
        engine = await asyncio.to_thread(self._load, folder, self.settings, self.metrics, self.worker_died)
        try:
            if not change_problem_type:
                _require_same_problem_type(folder, self._engine or engine, engine)
            await engine.check_canary(timeout_s=self.settings.canary_timeout_s)
        except BaseException as error:  # also when the server is stopped: free its threads and memory
            await engine.close(timeout_s=0.0)
            if isinstance(error, CanaryFailed):
                raise InputError(f"{folder}: {error}") from error
            raise
        former, self._engine = self._engine, engine
        if former is None:  # whatever later bundles call themselves: clients go on asking for the name that they know
            self.settings = dataclasses.replace(self.settings, model_name=engine.facts.name)
        self._not_ready = None
        self.metrics.model_serves(engine)
        grown_bytes = max(0, _resident_bytes() - resident_bytes)
        self.metrics.grown_bytes.set(grown_bytes)
        self._logger.info(
            "%s: %s on disk, %s of memory", engine.facts.name, _mib(engine.facts.graph_bytes), _mib(grown_bytes)
        )
        if former is not None:  # it still answers what it accepted
            self._keep(former.close(timeout_s=self.settings.max_request_timeout_ms / 1e3))

    async def _watch(self) -> None:
        """Check the canary at intervals, and at once if something looks wrong."""
        next_canary = time.monotonic() + self.settings.canary_interval_s
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            batcher = self.engine.batcher
            if batcher.closed_because is not None:
                self._not_ready = batcher.closed_because
            elif (stalled_s := batcher.workers.stalled_s()) > self.settings.stall_after_s:
                self._not_ready = f"a batch has been running for {stalled_s:.1f} s"
                batcher.lend_stalled_cores(self.settings.stall_after_s)
            elif self._not_ready is not None or time.monotonic() >= next_canary:
                await self._check_canary()
                await self._note_drift()
                next_canary = time.monotonic() + self.settings.canary_interval_s

    async def _check_canary(self) -> None:
        engine = self.engine
        deaths = self._worker_deaths
        try:
            seconds = await engine.check_canary(self.settings.canary_timeout_s)
        except CanaryFailed as error:
            if engine is self._engine:  # it was not replaced meanwhile
                self._logger.error("not ready: %s", error)
                self._not_ready = str(error)
            return
        self.metrics.canary_seconds.set(seconds)
        if engine is self._engine and deaths == self._worker_deaths and self._not_ready is not None:
            self._logger.warning("ready again; it was not because: %s", self._not_ready)
            self._not_ready = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.critical("a background task failed", exc_info=error)
            self._not_ready = f"a background task failed ({type(error).__name__})"

    async def _note_drift(self) -> None:
        """Log which features of the last texts have drifted, when that changes."""
        drifted = await asyncio.to_thread(self.engine.live_texts.drifted)
        if drifted and drifted != self._drifted:
            self._logger.warning("drift: the last texts differ in %s from those of the export", ", ".join(drifted))
        elif self._drifted and not drifted:
            self._logger.info("no drift any more")
        self._drifted = drifted

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background; the event loop itself holds no reference to a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)


class Models:
    """The models of a server, or the one that a request names."""

    def __init__(self, services: Sequence[Service]) -> None:
        self.services = services
        self.settings, self.keys = services[0].settings, services[0].keys

    @classmethod
    def of(cls, settings: ServeSettings, load: LoadEngine) -> Self:
        """Return the models of the settings, which `start` loads; raises InputError if the keys are bad."""
        keys = Keys(settings)
        return cls(
            [
                Service(
                    dataclasses.replace(settings, bundle={"": folder}, model_name=name or settings.model_name),
                    load,
                    keys,
                )
                for name, folder in settings.bundle.items()
            ]
        )

    def only(self, name: str) -> "Models":
        """Return the one of this name; raises NotFound if there is none."""
        for service in self.services:
            if service.name == name:
                return Models([service])
        raise NotFound(f"no model {name!r:.200}; this server has {', '.join(map(repr, self.names))}")

    @property
    def one(self) -> Service:
        """The model of a request; raises NotFound if there are several, and the request has not named one."""
        if len(self.services) > 1:
            path = f"{self.settings.root_path}/models/{self.services[0].name}/predict"
            raise NotFound(
                f"this server has {', '.join(map(repr, self.names))}; name one before the path, as in {path}"
            )
        return self.services[0]

    @property
    def names(self) -> list[str]:
        return [service.name for service in self.services]

    @cached_property
    def metrics(self) -> Metrics:
        """Those of the model; of several, the metrics of requests that concern no single one."""
        return self.one.metrics if len(self.services) == 1 else Metrics()

    @property
    def problems(self) -> dict[str, str]:
        """Name of each model that is not ready -> why."""
        return {service.name: reason for service in self.services if (reason := service.not_ready_because) is not None}

    @property
    def not_ready_because(self) -> str | None:
        """Why no traffic should be sent here; None while any model answers."""
        problems = self.problems
        if len(problems) < len(self.services):
            return None
        (reason, *others) = dict.fromkeys(problems.values())
        return "; ".join(f"{name}: {why}" for name, why in problems.items()) if others else reason

    @property
    def is_broken(self) -> bool:
        """Whether the server should end: no model can answer without a reload, or with `exit` any of them cannot."""
        return (any if self.settings.on_worker_death == "exit" else all)(service.is_broken for service in self.services)

    @property
    def is_draining(self) -> bool:
        return self.services[0].is_draining

    async def start(self) -> None:
        """Load them, one after the other; raises InputError as `Service.start`, with the name of one of several."""
        for service in self.services:
            try:
                await service.start()
            except InputError as error:
                if len(self.services) == 1:
                    raise
                raise InputError(f"--bundle {service.name}={service.folder}: {error}") from error

    def drain(self) -> None:
        """Turn readiness off."""
        for service in self.services:
            service.is_draining = True

    async def stop(self, timeout_s: float) -> None:
        """Stop all, as `Service.stop`."""
        await asyncio.gather(*(service.stop(timeout_s) for service in self.services))


def _require_same_problem_type(folder: Path, former: Engine, engine: Engine) -> None:
    """Refuse answers that clients of the former model do not expect, such as numbers in the place of labels."""
    was, found = former.facts.classifier.problem_type, engine.facts.classifier.problem_type
    if found != was:
        raise InputError(
            f"{folder}: its problem_type is {found}, that of the served model {was}, and clients would meet "
            'other fields; to load it, POST /admin/reload with "change_problem_type": true, or restart the server'
        )


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where /proc is missing."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
