import io
import os
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from places import SUPPORT
from rich.console import Console

from bench.harness.arena import Arena, Entrant, Limits
from bench.harness.hardware import first_gpus
from bench.harness.processes import ContenderProcess, WorkerSpec
from bench.harness.results import Measurement
from bench.harness.samples import median_rate, paired_ratio
from serve.contract.errors import InputError

CORES = sorted(os.sched_getaffinity(0))[:1]


@pytest.fixture(autouse=True)
def workers_find_the_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


def start(spec: WorkerSpec) -> ContenderProcess:
    return ContenderProcess(spec, cores=CORES, num_threads=3)


def fake(name: str, **settings: object) -> Entrant:
    return Entrant(name=name, spec=WorkerSpec(worker="bench_fakes:FakeWorker", settings=settings))


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[Arena, dict[str, Measurement]]]:
    """Return an arena in which six entrants were measured, and the measurements."""
    entrants = [
        fake("fast", speed=1000.0, noise=0.03, seed=1),
        fake("slow", speed=250.0, noise=0.03, seed=2),
        fake("fast (again)", speed=1000.0, noise=0.03, seed=3),
        fake("breaks", speed=500.0, fails_in_round=2),
        Entrant(name="absent", spec=WorkerSpec(worker="no_such_package:Worker")),
        Entrant(name="unable", spec=WorkerSpec(worker="bench_fakes:UnavailableWorker")),
        Entrant(name="mistyped", spec=WorkerSpec(worker="bench_fakes:NoSuchWorker")),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT))
        with Arena(entrants, start, Console(file=io.StringIO())) as arena:
            arena.start()
            found = arena.measure("rows", "rows", Limits(20, 0.0), lambda _, n: {"round_number": n, "rows": 64})
            yield arena, {measurement.contender: measurement for measurement in found}


def test_a_contender_of_known_speed_is_reported_at_that_speed(
    measured: tuple[Arena, dict[str, Measurement]],
) -> None:
    _, found = measured
    assert median_rate(found["fast"].samples) == pytest.approx(1000.0, rel=0.05)
    assert median_rate(found["slow"].samples) == pytest.approx(250.0, rel=0.05)
    ratio = paired_ratio(found["fast"].samples, found["slow"].samples)
    assert ratio.value == pytest.approx(4.0, rel=0.05)
    assert ratio.verdict == "faster"


def test_a_contender_next_to_itself_shows_no_difference(measured: tuple[Arena, dict[str, Measurement]]) -> None:
    _, found = measured
    ratio = paired_ratio(found["fast"].samples, found["fast (again)"].samples)
    assert ratio.low <= 1.0 <= ratio.high


def test_warm_ups_are_not_among_the_samples_and_every_call_has_its_latency(
    measured: tuple[Arena, dict[str, Measurement]],
) -> None:
    _, found = measured
    assert [sample.round for sample in found["fast"].samples] == list(range(20))
    assert found["fast"].latencies_ms == tuple(round(1e3 * sample.seconds, 4) for sample in found["fast"].samples)


def test_what_cannot_run_is_named_with_the_reason(measured: tuple[Arena, dict[str, Measurement]]) -> None:
    arena, found = measured
    records = {record.name: (record.status, record.reason) for record in arena.records}
    assert records["absent"] == ("not installed", "No module named 'no_such_package'")
    assert records["unable"] == ("failed", "needs a machine that does not exist")
    assert records["mistyped"][0] == "failed"
    assert "no attribute 'NoSuchWorker'" in records["mistyped"][1]
    assert records["breaks"] == ("failed", "the fake broke, as configured")
    assert len(found["breaks"].samples) == 2  # what was measured before is kept
    assert records["fast"] == ("measured", "")
    assert arena.alive == ["fast", "slow", "fast (again)"]


def test_facts_of_the_start_are_in_the_record(measured: tuple[Arena, dict[str, Measurement]]) -> None:
    arena, _ = measured
    facts = arena.records[0].facts
    assert facts["loaded_memory_mib"] == 20.0
    assert facts["cold_start_s"] > 0


def test_a_worker_has_its_own_process_with_the_threads_and_cores_asked_for() -> None:
    with closing(start(fake("one", speed=1.0).spec)) as one, closing(start(fake("two", speed=1.0).spec)) as two:
        environments = [process.call("environment") for process in (one, two)]
    assert [environment["threads"] for environment in environments] == ["3", "3"]
    assert [environment["cores"] for environment in environments] == [CORES, CORES]
    assert len({os.getpid(), *(environment["pid"] for environment in environments)}) == 3


def test_a_worker_sees_as_many_gpus_as_it_has_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    with closing(start(fake("one", speed=1.0).spec)) as one:
        assert one.call("environment")["gpus"] == "GPU-a"
    assert first_gpus(2) == "GPU-a,GPU-b"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none: it stays so
    assert first_gpus(1) == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert first_gpus(2) == "0,1"


def test_a_worker_reports_its_own_peak_of_memory_and_not_that_of_the_process_that_started_it() -> None:
    large = np.ones(2**26)  # 512 MiB
    with closing(start(fake("one", speed=1.0).spec)) as one:
        del large
        memory = one.call("memory")
    assert 10 < memory["memory_mib"] <= memory["peak_memory_mib"] < 512


def test_a_worker_that_dies_is_reported_with_its_last_words() -> None:
    with Arena([fake("mortal", speed=1.0)], start, Console(file=io.StringIO())) as arena:
        arena.start()
        assert arena.call("mortal", "die") is None
        (record,) = arena.records
    assert record.status == "failed"
    assert "exit status 3" in record.reason
    assert "these were its last words" in record.reason


@pytest.mark.parametrize(
    ("python", "status", "reason"),
    [
        ("/bin/false", "failed", "did not start: it printed nothing"),
        ("/no/such/python", "not installed", "No such file"),
    ],
)
def test_a_python_that_cannot_run_a_worker_is_reported(python: str, status: str, reason: str) -> None:
    absent = Entrant(name="absent", spec=WorkerSpec(worker="bench_fakes:FakeWorker", python=python))
    with Arena([absent, fake("one", speed=1.0)], start, Console(file=io.StringIO())) as arena:
        arena.start()
        record, _ = arena.records
    assert record.status == status
    assert reason in record.reason


def test_closing_ends_every_process() -> None:
    with Arena([fake("one", speed=1.0)], start, Console(file=io.StringIO())) as arena:
        arena.start()
        pid = arena.call("one", "environment")["pid"]  # type: ignore[index]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_where_no_contender_can_run_the_reasons_are_reported() -> None:
    absent = Entrant(name="absent", spec=WorkerSpec(worker="no_such_package:Worker"))
    with (
        Arena([absent], start, Console(file=io.StringIO())) as arena,
        pytest.raises(InputError, match="no contender to measure: absent: No module named"),
    ):
        arena.start()
