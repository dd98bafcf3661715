"""Fake contenders of known speed, and results made from them."""

from typing import Any

import numpy as np

from bench.harness.hardware import Machine
from bench.harness.results import Contender, Measurement, Results
from bench.harness.samples import Sample
from bench.harness.worker import ContenderWorker

MACHINE = Machine(
    processor="a processor",
    instruction_sets=("avx512_vnni",),
    cores=(0, 1),
    num_threads=2,
    memory_gib=8.0,
    gpu=None,
    system="Linux",
    versions={"torch": "2.13.0"},
    commit="0123456789abcdef",
)


class FakeWorker(ContenderWorker):
    """Reports `speed` rows/s, with relative noise of standard deviation `noise`."""

    def __init__(self, speed: float, noise: float = 0.0, seed: int = 0, fails_in_round: int | None = None) -> None:
        self.speed = speed
        self.noise = noise
        self.random = np.random.default_rng(seed)
        self.fails_in_round = fails_in_round

    def start(self) -> dict[str, Any]:
        return {"loaded_memory_mib": 20.0}

    def repeat(self, round_number: int, rows: int) -> dict[str, Any]:
        if round_number == self.fails_in_round:
            raise RuntimeError("the fake broke, as configured")
        seconds = rows / self.speed * float(np.exp(self.noise * self.random.standard_normal()))
        return {"amount": rows, "seconds": seconds, "latencies_ms": [1e3 * seconds]}

    def environment(self) -> dict[str, Any]:
        import os

        variables = {"threads": "OMP_NUM_THREADS", "gpus": "CUDA_VISIBLE_DEVICES"}
        found = {name: os.environ[variable] for name, variable in variables.items()}
        return found | {"cores": sorted(os.sched_getaffinity(0)), "pid": os.getpid()}

    def die(self) -> dict[str, Any]:
        import os

        print("these were its last words", flush=True)
        os._exit(3)


class UnavailableWorker(ContenderWorker):
    """A contender that cannot run."""

    def start(self) -> dict[str, Any]:
        raise RuntimeError("needs a machine that does not exist")


def samples_at(
    speed: float, *, noise: float = 0.0, count: int = 10, seed: int = 0, rows: float = 100.0
) -> list[Sample]:
    """Return samples of `speed` rows/s."""
    factors = np.exp(noise * np.random.default_rng(seed).standard_normal(count))
    return [Sample(round=n, amount=rows, seconds=rows / speed * float(factor)) for n, factor in enumerate(factors)]


def results_of(speeds: dict[str, float], *, noise: float = 0.02, seed: int = 0, **changes: Any) -> Results:
    """Return results of contenders with the given speeds; the first is the headline."""
    measurements = tuple(
        Measurement(
            contender=name,
            case="batch 32",
            unit="rows",
            samples=tuple(samples_at(speed, noise=noise, seed=seed + place)),
            latencies_ms=(1.0, 2.0, 4.0),
        )
        for place, (name, speed) in enumerate(speeds.items())
    )
    values: dict[str, Any] = {
        "benchmark": "inference",
        "created": "2026-01-01T00:00:00+00:00",
        "command": "python -m bench inference",
        "machine": MACHINE,
        "work": {"rows": 100, "rows_digest": "abc"},
        "headline": next(iter(speeds)),
        "contenders": tuple(Contender(name=name) for name in speeds),
        "measurements": measurements,
    }
    return Results(**values | changes)
