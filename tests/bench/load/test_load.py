import asyncio
import contextlib
import dataclasses
import itertools
import json
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.harness.processes import ContenderFailed
from bench.harness.results import read_results
from bench.load import traffic
from bench.load.contenders import LoadOptions, ServerSpec, server_entrants
from bench.load.run import highest_rate, majority, run
from bench.load.server import Server
from bench.load.traffic import FAILED, arrival_times, ask, closed_loop, open_loop, shares
from serve.contract.classifier import Classifier, write_classifier
from serve.contract.errors import InputError

LISTENER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"label": "good", "score": 1.0}'
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Answering(BaseHTTPRequestHandler):
    """Finds the label in the text; refuses texts that say so; under /once it answers no second text."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_POST(self) -> None:
        inputs = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        text = inputs if isinstance(inputs, str) else inputs[0]
        self.seen.append(text)
        if self.path == "/once" and len(self.seen) > 1:
            self.close_connection = True
            return
        body = json.dumps({"results": [{"label": text.split()[-1], "score": 1.0}]}).encode()
        self.send_response(429 if text.startswith("refuse") else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def live() -> Iterator[tuple[str, list[str]]]:
    """Return the URL of a server, and the list of texts that it saw."""
    seen: list[str] = []
    server = type("Wide", (ThreadingHTTPServer,), {"request_queue_size": 128, "daemon_threads": True})(
        ("127.0.0.1", 0), type("Seeing", (Answering,), {"seen": seen})
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/classify", seen
    server.shutdown()
    thread.join()
    server.server_close()


def with_session(work: Callable[..., Awaitable[Any]], *arguments: Any, **keywords: Any) -> Any:
    async def in_session() -> Any:
        import aiohttp

        async with aiohttp.ClientSession() as session:
            return await work(session, *arguments, **keywords)

    return asyncio.run(in_session())


def body(text: str) -> bytes:
    return json.dumps({"inputs": [text]}).encode()


def test_arrivals_come_at_the_rate_asked_for_and_by_the_seed() -> None:
    times = arrival_times(200.0, 50.0, seed=1)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert (np.diff(times) > 0).all()
    assert times[0] > 0
    assert times[-1] < 50.0
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential gaps: a Poisson process
    assert (times == arrival_times(200.0, 50.0, seed=1)).all()
    assert len(arrival_times(200.0, 50.0, seed=2)) != len(times)


def test_an_open_loop_sends_everything_that_is_due_and_counts_each_answer(live: tuple[str, list[str]]) -> None:
    url, seen = live
    bodies = itertools.cycle([body("a good"), body("refuse me bad")])
    found = with_session(open_loop, url, bodies, rate=200.0, seconds=0.3, seed=0)
    assert found.statuses.total() == len(seen) == len(arrival_times(200.0, 0.3, 0))
    assert shares(found.statuses)["refused_share"] == pytest.approx(0.5, abs=0.02)
    assert len(found.latencies_ms) == found.statuses[200]
    assert len(found.lags_ms) == found.statuses.total()
    assert shares(found.statuses)["failed_share"] == 0.0


def test_a_closed_loop_counts_only_the_stretch_and_leaves_nothing_unanswered(live: tuple[str, list[str]]) -> None:
    url, seen = live
    found = with_session(closed_loop, url, itertools.cycle([body("a good")]), clients=3, warm_s=0.3, seconds=1.0)
    assert 0 < found.statuses.total() < len(seen)
    assert found.seconds == 1.0
    assert set(found.statuses) == {200}
    assert len(found.seen_ms) == len(seen)


def test_an_absent_server_fails_every_request() -> None:
    found = with_session(open_loop, "http://127.0.0.1:9/", itertools.cycle([b"{}"]), rate=50.0, seconds=0.2, seed=0)
    assert set(found.statuses) == {FAILED}
    assert shares(found.statuses)["failed_share"] == 1.0
    assert found.latencies_ms == []


def test_answers_keep_the_order_of_the_questions(live: tuple[str, list[str]]) -> None:
    url, _ = live
    answers = with_session(ask, url, [body(f"text {n}") for n in range(20)] + [body("refuse x")], clients=5)
    assert [json.loads(answer)["results"][0]["label"] for _, answer in answers[:-1]] == [str(n) for n in range(20)]
    assert [status for status, _ in answers] == [200] * 20 + [429]


def test_shares_of_no_traffic_are_zero() -> None:
    assert shares(Counter()) == {"refused_share": 0.0, "failed_share": 0.0}


def write_run(folder: Path) -> Path:
    """Write what the load test reads of a run: classifier.json and two rows of each label."""
    (folder / "model").mkdir()
    write_classifier(
        folder / "model", Classifier(name="tiny", labels=("bad", "good"), text_column="text", max_length=8)
    )
    (folder / "samples").mkdir()
    rows = {"text": ["this is good", "this is bad"], "label": ["good", "bad"]}
    pq.write_table(pa.table(rows), folder / "samples" / "validation.parquet")
    return folder


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COUNTED_S": 0.05, "WARM_S": 0.02}.items():
        monkeypatch.setattr(traffic, name, value)
    monkeypatch.setattr("bench.load.run.QUICK_OPEN_S", 0.1)


def test_the_whole_load_test_against_a_server_that_runs_already(
    live: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = live
    hurry(monkeypatch)
    options = LoadOptions(
        run=write_run(tmp_path), targets=[f"mine=native@{url}", "gone=tei@http://127.0.0.1:9"],
        contenders=["mine", "gone"], quick=True, output=tmp_path,
    )  # fmt: skip
    run(options, "python -m bench load")
    results = read_results(tmp_path)
    mine, gone = results.contenders
    assert mine.facts["answered_share"] == mine.facts["accuracy"] == 1.0
    assert mine.facts["capacity_per_s"] > 0
    assert mine.facts["rate_within_bound_per_s"] >= 0
    assert gone.status == "failed"
    assert "http://127.0.0.1:9/predict does not answer" in gone.reason
    assert results.cases == ["1 client", "32 clients", "open loop, 50% of capacity", "open loop, 100% of capacity"]
    assert (tmp_path / "load_curve.png").is_file()
    assert (tmp_path / "load_clients.png").is_file()
    assert "gone" in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["not_measured"].keys() == {"gone"}


def test_a_server_that_cannot_be_measured_costs_the_others_nothing(
    live: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = live
    hurry(monkeypatch)
    once = url.replace("/v1/classify", "/once")
    targets = [f"once=native@{once}", f"mine=native@{url}", f"twin=native@{url}", f"mistaken=hf@{url}"]
    options = LoadOptions(
        run=write_run(tmp_path), targets=targets, contenders=["once", "mine", "twin", "mistaken"], quick=True,
        output=tmp_path,
    )  # fmt: skip
    run(options, "python -m bench load")
    records = {record.name: record for record in read_results(tmp_path).contenders}
    assert {name: record.status for name, record in records.items()} == {
        "once": "failed", "mine": "measured", "twin": "measured", "mistaken": "failed"
    }  # fmt: skip
    assert records["once"].reason.startswith("answered nothing to 1 clients")
    assert "do not have the format it was named with, such as: {" in records["mistaken"].reason
    cases = json.loads(capsys.readouterr().out.splitlines()[-1])["cases"]
    assert "baseline_is_times" in cases["1 client"]["twin"]
    assert cases["open loop, 50% of capacity"]["twin"].keys() == {"requests_per_s"}


def test_the_highest_rate_is_found_between_what_held_and_what_did_not() -> None:
    tries: list[float] = []

    def holds(rate: float) -> bool:
        tries.append(rate)
        return rate <= 0.7

    assert highest_rate(holds, num_steps=6) == (0.6875, 0.71875)
    assert tries == [1.0, 0.5, 0.75, 0.625, 0.6875, 0.71875]
    assert highest_rate(lambda _: False, num_steps=3) == (0.0, 0.25)


def test_where_all_rates_held_higher_ones_are_tried() -> None:
    assert highest_rate(lambda _: True, num_steps=3) == (1.5625, None)
    assert highest_rate(lambda rate: rate < 1.2, num_steps=3) == (1.125, 1.25)


@pytest.mark.parametrize(
    ("said", "holds", "num_tries"),
    [
        ([True, True], True, 2),
        ([False, False], False, 2),
        ([True, False, True], True, 3),
        ([False, True, True], True, 3),
        ([True, False, False], False, 3),
    ],
)
def test_one_glitch_decides_nothing(said: list[bool], holds: bool, num_tries: int) -> None:
    numbers: list[int] = []

    def attempt(number: int) -> bool:
        numbers.append(number)
        return said[number]

    assert majority(attempt) is holds
    assert numbers == list(range(num_tries))  # each with a seed of its own


def spec(*command: str) -> ServerSpec:
    return ServerSpec(format="litserve", command=command)


@contextlib.contextmanager
def launched(server: ServerSpec) -> Iterator[Server]:
    with contextlib.closing(Server(server, ["x"], cores=[0], num_threads=1)) as found:
        yield found


def test_a_server_is_started_on_a_free_port_and_stopped(tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text(LISTENER, encoding="utf-8")
    with launched(spec(sys.executable, str(script), "PORT")) as server:
        assert server.start()["cold_start_s"] > 0
        assert server.memory()["memory_mib"] > 0
        assert server.labels(num_texts=1)["labels"] == ["good"]
    found = with_session(open_loop, server.url, itertools.cycle([b"{}"]), rate=20.0, seconds=0.1, seed=3)
    assert 200 not in found.statuses


def test_a_server_that_dies_is_reported_with_its_last_words() -> None:
    dying = spec(sys.executable, "-c", "import sys; print('the model is nowhere'); sys.exit(1)", "PORT")
    with (
        launched(dying) as server,
        pytest.raises(ContenderFailed, match="did not start: the model is nowhere") as caught,
    ):
        server.start()
    assert caught.value.status == "failed"


def test_a_peer_that_is_not_installed_is_named_as_such() -> None:
    absent = spec(sys.executable, "-c", "import no_such_module")
    with launched(absent) as server, pytest.raises(ContenderFailed, match="No module named") as caught:
        server.start()
    assert caught.value.status == "not installed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run": Path("r"), "clients": [0]}, "--clients must be 1 or more each"),
        ({"run": Path("r"), "p99_bound_ms": 0.0}, "--p99_bound_ms must be positive"),
    ],
)
def test_options_that_contradict_each_other_name_the_way_out(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LoadOptions(**fields)


def test_a_run_may_be_named_only_for_its_rows(tmp_path: Path) -> None:
    target = "x=tei@http://127.0.0.1:9"
    options = LoadOptions(run=tmp_path, targets=[target])
    assert [entrant.name for entrant in server_entrants(options)] == ["LitServe", "infinity", "x"]
    for missing in (LoadOptions(run=tmp_path), LoadOptions(run=tmp_path, bundle=tmp_path / "absent", targets=[target])):
        with pytest.raises(InputError, match="no such"):
            server_entrants(missing)


def test_a_server_without_its_script_is_not_installed() -> None:
    absent = dataclasses.replace(spec("/bin/no_such_server"), python_flag="infinity_python")
    said = "no_such_server.*; name a Python that has it with --infinity_python"
    with pytest.raises(ContenderFailed, match=said) as caught, launched(absent):
        pass
    assert caught.value.status == "not installed"


def test_two_servers_with_the_same_name_are_refused() -> None:
    options = LoadOptions(run=Path("x"), targets=["x=tei@http://a", "x=tei@http://b"])
    with pytest.raises(InputError, match="two servers have the same name"):
        server_entrants(options)
