"""The server around the protocols: limits, deadlines, keys, health, reload, metrics, documentation."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import select
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from live_server import TIMEOUT_S, LiveServer, live_server, save_served_bundle, until
from tiny_bundles import VOCABULARY

from serve.batching import token_listing
from serve.contract.bundle import read_bundle, record_files, write_manifest
from serve.contract.classifier import write_classifier
from serve.contract.drift import Distribution
from serve.contract.errors import InputError
from serve.http.observability.logs import JsonFormatter

CLASSIFY = {"inputs": ["w1 good"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "other", labels=("no", "perhaps", "yes"))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with live_server(bundle, max_payload_bytes=5_000, max_inputs=4, max_text_chars=1_000) as live:
        yield live


class Gated:
    """A session that waits for its gate, and fails or dies on certain words."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.num_rows = 0
        self.dies = False

    def run(self, inputs: dict[str, Any]) -> Any:
        self.num_rows += len(inputs["input_ids"])
        self.entered.set()
        assert self.gate.wait(TIMEOUT_S)
        if self.dies:
            self.dies = False
            self.gate.clear()  # so that the canary waits
            raise SystemExit("killed")
        if (inputs["input_ids"] == VOCABULARY["bad"]).any():
            raise RuntimeError("poison")
        return self.runner.run(inputs)


@pytest.fixture
def gated(bundle: Path) -> Iterator[tuple[LiveServer, Gated]]:
    """Return a server with one session that can be held up."""
    with live_server(
        bundle,
        narrow_workers=0,
        max_queued_tokens=40,
        canary_interval_s=3600.0,
        stall_after_s=0.1,
    ) as live:
        (worker,) = live.service.engine.batcher.workers
        runner = Gated(worker.runner)
        worker.runner = runner
        yield live, runner
        runner.gate.set()


def in_background(work: Callable[[], Any]) -> "concurrent.futures.Future[Any]":
    pool = concurrent.futures.ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


# ---- limits


def test_a_body_that_is_too_large_is_refused_unread(server: LiveServer) -> None:
    answer = server.post("/v1/classify", {"inputs": ["x" * 6_000]})
    assert answer.status_code == 413
    assert "5,000" in answer.json()["error"]["message"]


def sent_in_part(live: LiveServer, body: bytes, *headers: str, length: int = 100) -> socket.socket:
    """Return a connection on which a request was sent without the end of its body."""
    host, port = live.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    lines = ["POST /v1/classify HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]
    client.sendall("\r\n".join(lines).encode() + body)
    return client


def test_a_body_that_does_not_arrive_times_out(server: LiveServer) -> None:
    with sent_in_part(server, b"{", "X-Request-Timeout-Ms: 50") as client:
        answer = client.makefile("rb").read()  # until the server closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body" in answer.splitlines()[-1]


def test_large_bodies_on_their_way_in_are_few_and_keep_out_no_small_ones(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.http.gateway.MAX_LARGE_BODIES", 2)
    with live_server(bundle, max_payload_bytes=200_000) as live, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(sent_in_part(live, b" " * 150_000, length=200_000)) for _ in range(3)]
        (refused,), _, _ = select.select(clients, [], [], TIMEOUT_S)
        assert refused.recv(1_000).startswith(b"HTTP/1.1 429 ")
        assert live.post("/v1/classify", CLASSIFY).status_code == 200
        for client in clients:
            client.close()
        until(lambda: live.post("/v1/classify", {"inputs": ["x" * 90_000]}).status_code == 200)


def test_a_body_of_unknown_length_is_counted(server: LiveServer) -> None:
    answer = requests.post(server.url + "/predict", data=iter([b"x" * 1_000] * 9), timeout=TIMEOUT_S)
    assert answer.status_code == 413


def test_too_many_inputs_and_too_long_texts_are_refused(server: LiveServer) -> None:
    many = server.post("/v1/classify", {"inputs": ["w1"] * 5})
    assert (many.status_code, "may have 4" in many.json()["error"]["message"]) == (413, True)
    long = server.post("/predict", {"inputs": "w" * 1_001})
    assert (long.status_code, long.json()["error_type"]) == (413, "Validation")
    tokens = server.post("/tokenize", {"inputs": "w" * 1_001})
    assert tokens.status_code == 413
    in_all = server.post("/tokenize", {"inputs": ["w" * 600, "w" * 401]})
    assert (in_all.status_code, "1,001 characters in all" in in_all.json()["error"]) == (413, True)


@pytest.mark.parametrize("given", ["0", "-1", "soon", "1.5", "9" * 30])
def test_a_malformed_timeout_is_refused(server: LiveServer, given: str) -> None:
    answer = server.post("/v1/classify", CLASSIFY, headers={"X-Request-Timeout-Ms": given})
    assert answer.status_code == 422


def test_unknown_paths_and_methods(server: LiveServer) -> None:
    assert server.get("/nothing").json()["error_type"] == "NotFound"
    assert server.post("/predict%0A", CLASSIFY).json()["error_type"] == "NotFound"
    wrong = server.get("/predict")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert server.post("/health", CLASSIFY).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/predict/", "/health/", "/v1/classify/"])
def test_a_slash_at_the_end_is_another_path_and_no_one_is_sent_elsewhere(server: LiveServer, path: str) -> None:
    answer = server.post(path, CLASSIFY, headers={"Host": "elsewhere.example"}, allow_redirects=False)
    assert (answer.status_code, answer.json()["error_type"]) == (404, "NotFound")
    assert "location" not in answer.headers


def test_head_is_answered_like_get_without_the_body(server: LiveServer) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    gets = [path.format(name="tiny", version="1") for path, methods in paths.items() if "get" in methods]
    assert {"/health", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"} < set(gets)
    for path in [*gets, "/docs", "/openapi.json"]:
        answer = requests.head(server.url + path, timeout=TIMEOUT_S)
        assert (answer.status_code, answer.content) == (200, b""), path
        assert int(answer.headers["content-length"]) > 0


def test_request_ids_come_back(server: LiveServer) -> None:
    given = server.post("/v1/classify", CLASSIFY, headers={"X-Request-Id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    made = [server.post("/v1/classify", CLASSIFY).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]


def test_a_bug_is_answered_too(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.observability.metrics.Exposition.text", lambda self: 1 / 0)
    answer = server.get("/metrics")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json()["error"]


# ---- overload, deadlines, faults


def test_overload_is_refused_at_once(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    running = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(runner.entered.is_set)
    waiting = [in_background(lambda: live.post("/predict", {"inputs": "w1 w2 w3 w4 w5 w6"})) for _ in range(5)]
    until(lambda: live.service.engine.batcher.queued_tokens == 40)
    refused = live.post("/predict", {"inputs": "w1"})
    assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    runner.gate.set()
    assert [each.result(TIMEOUT_S).status_code for each in [running, *waiting]] == [200] * 6


@pytest.mark.parametrize(("path", "body"), [("/tokenize", {"inputs": "w1"}), ("/v1/explain", {"text": "w1"})])
def test_tokens_are_listed_in_time_or_not_at_all(
    server: LiveServer, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr("serve.batching.token_listing.list_tokens", lambda *_, **__: gate.wait(TIMEOUT_S) and [])
    late = server.post(path, body, headers={"X-Request-Timeout-Ms": "30"})
    gate.set()
    assert late.status_code == 408


def test_an_expired_request_is_answered_in_time(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    running = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(runner.entered.is_set)
    late = live.post("/v1/classify", CLASSIFY, headers={"X-Request-Timeout-Ms": "30"})
    assert (late.status_code, late.json()["error"]["type"]) == (408, "Timeout")
    runner.gate.set()
    assert running.result(TIMEOUT_S).status_code == 200


def test_a_client_that_hangs_up_costs_no_work(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    running = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(runner.entered.is_set)
    host, port = live.url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": "w1 w2 w3"}).encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: live.service.engine.batcher.queued_tokens == 5)
    until(lambda: live.service.engine.batcher.queued_tokens == 0)
    rows_before = runner.num_rows
    runner.gate.set()
    assert running.result(TIMEOUT_S).status_code == 200
    assert live.post("/predict", {"inputs": "w1"}).status_code == 200
    assert runner.num_rows == rows_before + 1
    until(lambda: 'rawloop_requests_total{protocol="tei",status="499"} 1.0' in live.get("/metrics").text)


def test_only_the_poisonous_text_fails(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    first = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(runner.entered.is_set)
    texts = ["w2", "bad", "w3", "w4"]
    others = [in_background(lambda text=text: live.post("/predict", {"inputs": text})) for text in texts]
    until(lambda: live.service.engine.batcher.queued_tokens == 4 * 3)  # [CLS] word [SEP]
    runner.gate.set()
    assert first.result(TIMEOUT_S).status_code == 200
    assert [each.result(TIMEOUT_S).status_code for each in others] == [200, 424, 200, 200]
    mixed = live.post("/v1/classify", {"inputs": ["good", "bad"]}).json()["results"]
    assert (mixed[0]["label"], mixed[1]["error"]["type"]) == ("positive", "Backend")
    until(lambda: "rawloop_failed_inputs_total 2.0" in live.get("/metrics").text)


# ---- health


def test_a_dead_worker_turns_readiness_off_until_the_canary_is_answered(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.dies = True
    lost = live.post("/predict", {"inputs": "w1"})
    assert (lost.status_code, lost.json()["error_type"]) == (503, "Unhealthy")
    until(lambda: live.get("/health").status_code == 503)
    runner.gate.set()
    until(lambda: live.get("/health").status_code == 200)
    assert live.post("/predict", {"inputs": "w1"}).status_code == 200
    assert "rawloop_worker_deaths_total 1.0" in live.get("/metrics").text


def test_a_stall_turns_readiness_off(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    stuck = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(lambda: live.get("/health/ready").status_code == 503)
    assert "running for" in live.get("/health").json()["error"]
    assert live.get("/v2/health/ready").status_code == 503
    assert live.get("/health/live").status_code == 200
    runner.gate.set()
    until(lambda: live.get("/health").status_code == 200)
    assert stuck.result(TIMEOUT_S).status_code == 200


def test_a_wrong_canary_turns_readiness_off(gated: tuple[LiveServer, Gated]) -> None:
    live, _ = gated
    engine = live.service.engine
    engine.facts = dataclasses.replace(engine.facts, canary_logits=(9.0, 0.0, 0.0))
    live.service._not_ready = "asked to look"
    until(lambda: "probabilities differ" in live.get("/health").json().get("error", ""))


def test_a_canary_of_other_labels_turns_readiness_off(gated: tuple[LiveServer, Gated]) -> None:
    live, _ = gated
    engine = live.service.engine
    engine.facts = dataclasses.replace(engine.facts, canary_logits=(9.0, 0.0))
    live.service._not_ready = "asked to look"
    until(lambda: "3 scores, but 2 at export" in live.get("/health").json().get("error", ""))


def test_a_bundle_that_does_not_answer_its_canary_is_not_served(bundle: Path) -> None:
    broken = _with_canary_logits(bundle, (9.0, 0.0, 0.0))
    with pytest.raises(InputError, match="probabilities differ"), live_server(broken):
        pass


def _with_canary_logits(bundle: Path, logits: tuple[float, ...]) -> Path:
    folder = save_served_bundle(bundle.parent / "other_canary")
    manifest = read_bundle(folder).manifest
    variant = dataclasses.replace(manifest.variants["fp32"], canary_logits=logits)
    write_manifest(folder, dataclasses.replace(manifest, variants={"fp32": variant}))
    return folder


# ---- keys, CORS


def test_keys(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# rotated in\nnew\n")
    with live_server(bundle, api_keys=("old", "older"), api_keys_file=keys, admin_keys=("chief",)) as live:

        def status(path: str, **headers: str) -> int:
            return live.post(path, CLASSIFY, headers={k.replace("_", "-"): v for k, v in headers.items()}).status_code

        assert status("/v1/classify") == 401
        assert status("/v1/classify", authorization="Bearer wrong") == 401
        for key in ("old", "older", "new", "chief"):
            assert status("/v1/classify", authorization=f"Bearer {key}") == 200
        assert status("/v1/classify", x_api_key="new") == 200
        assert status("/v2/models/tiny/infer") == 401
        assert live.get("/metrics").status_code == 401
        assert live.get("/health").status_code == 200
        assert live.post("/admin/reload", {}, headers={"authorization": "Bearer old"}).status_code == 401
        keys.write_text("newer\n")
        assert live.post("/admin/reload", {}, headers={"authorization": "Bearer chief"}).status_code == 200
        assert status("/v1/classify", authorization="Bearer new") == 401
        assert status("/v1/classify", authorization="Bearer newer") == 200
        keys.write_text("newest\n")
        nowhere = {"bundle": str(tmp_path / "nowhere")}
        assert live.post("/admin/reload", nowhere, headers={"authorization": "Bearer chief"}).status_code == 422
        assert status("/v1/classify", authorization="Bearer newer") == 200, "a refused reload changes nothing"
        assert status("/v1/classify", authorization="Bearer newest") == 401
        keys.write_text("")
        assert live.post("/admin/reload", {}, headers={"authorization": "Bearer chief"}).status_code == 422
        assert status("/v1/classify", authorization="Bearer newer") == 200


def test_without_admin_keys_admin_is_closed(server: LiveServer) -> None:
    assert server.post("/admin/reload", {}).status_code == 403


def test_cors(bundle: Path) -> None:
    origin = "https://app.example"
    with live_server(bundle, cors_origins=(origin,)) as live:
        answer = live.post("/v1/classify", CLASSIFY, headers={"origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        asked = requests.options(
            live.url + "/v1/classify",
            headers={"origin": origin, "access-control-request-method": "POST"},
            timeout=TIMEOUT_S,
        )
        assert asked.status_code == 200
        stranger = live.post("/v1/classify", CLASSIFY, headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in stranger.headers


# ---- reload and drain


def test_reload_under_load_fails_no_request(bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    broken = save_served_bundle(tmp_path / "broken")
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:-1] + b"!")
    chief = {"authorization": "Bearer chief"}
    with live_server(bundle, admin_keys=("chief",)) as live, requests.Session() as session:
        stop = threading.Event()
        statuses: list[int] = []
        labels: set[str] = set()

        def load() -> None:
            with requests.Session() as client:
                while not stop.is_set():
                    answer = client.post(live.url + "/predict", json={"inputs": "w1 good"}, timeout=TIMEOUT_S)
                    statuses.append(answer.status_code)
                    labels.add(answer.json()[0]["label"])

        clients = [in_background(load) for _ in range(4)]
        before = live.service.engine.facts.version
        refused = session.post(
            live.url + "/admin/reload", json={"bundle": str(broken)}, headers=chief, timeout=TIMEOUT_S
        )
        assert refused.status_code == 422
        assert "model.onnx" in refused.json()["error"]
        assert live.service.engine.facts.version == before
        absent = session.post(live.url + "/admin/reload", json={"bundle": "/nowhere"}, headers=chief, timeout=TIMEOUT_S)
        assert absent.status_code == 422
        wrong = _with_canary_logits(tmp_path / "bundle", (9.0, 0.0, 0.0))
        assert (
            session.post(live.url + "/admin/reload", json={"bundle": str(wrong)}, headers=chief, timeout=TIMEOUT_S)
        ).status_code == 422
        done = session.post(
            live.url + "/admin/reload", json={"bundle": str(other_bundle)}, headers=chief, timeout=TIMEOUT_S
        )
        assert done.status_code == 200
        assert done.json()["version"] == live.service.engine.facts.version != before
        count = len(statuses)
        until(lambda: len(statuses) > count + 20)
        stop.set()
        for each in clients:
            each.result(TIMEOUT_S)
        assert set(statuses) == {200}
        assert labels == {"positive", "yes"}
        assert 'rawloop_reloads_total{result="refused"} 3.0' in live.get("/metrics").text


def _with_name(bundle: Path, folder: Path, name: str) -> Path:
    given = read_bundle(bundle)
    shutil.copytree(bundle, folder)
    write_classifier(folder, dataclasses.replace(given.classifier, name=name))
    write_manifest(folder, dataclasses.replace(given.manifest, files=record_files(folder)))
    return folder


@pytest.mark.parametrize("name", [None, "sentiment"])
def test_the_served_name_outlives_a_reload(bundle: Path, other_bundle: Path, name: str | None) -> None:
    """A run's name holds the time of its training: clients that know the old one go on."""
    renamed = _with_name(other_bundle, other_bundle.parent / f"for {name}", "org/20260101T000000_other")
    served = name or "tiny"
    with live_server(bundle, admin_keys=("chief",), model_name=name) as live:
        chief = {"authorization": "Bearer chief"}
        done = live.post("/admin/reload", {"bundle": str(renamed)}, headers=chief)
        assert (done.status_code, done.json()["name"]) == (200, served)
        assert live.service.engine.facts.folder == renamed
        assert live.post("/admin/reload", {}, headers=chief).status_code == 200
        assert live.service.engine.facts.folder == renamed, "what is served is reloaded, not what was at the start"
        assert live.get(f"/v2/models/{served}").json()["name"] == served
        assert live.post("/classify", {"input": ["w1"], "model": served}).json()["model"] == served
        assert live.get("/v1/model").json()["name"] == served
        assert f'name="{served}"' in live.get("/metrics").text


def test_a_bundle_whose_name_no_path_can_hold_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = _with_name(bundle, tmp_path / "named", "org/model")
    with pytest.raises(InputError, match="--model_name"), live_server(folder):
        pass
    with live_server(folder, model_name="org-model") as live:
        assert live.get("/v2/models/org-model").status_code == 200


def test_an_explanation_that_a_reload_overtakes_is_answered(
    bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), token_listing.list_tokens

    def held(*arguments: Any, **options: Any) -> Any:
        assert gate.wait(TIMEOUT_S)
        return real(*arguments, **options)

    monkeypatch.setattr(token_listing, "list_tokens", held)
    with live_server(bundle, admin_keys=("chief",)) as live:
        former = live.service.engine
        explained = in_background(lambda: live.post("/v1/explain", {"text": "w1 good"}))
        until(lambda: former.lister.num_pending)
        chief = {"authorization": "Bearer chief"}
        assert live.post("/admin/reload", {"bundle": str(other_bundle)}, headers=chief).status_code == 200
        gate.set()
        answer = explained.result(TIMEOUT_S)
        assert (answer.status_code, answer.json()["label"]) == (200, "positive")
        until(lambda: former.batcher.closed_because)


def test_whatever_goes_wrong_in_a_new_bundle_the_old_one_stays(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with live_server(bundle, admin_keys=("chief",)) as live:
        before = live.service.engine

        def fail(folder: Path, *rest: Any) -> Any:
            raise MemoryError("out of memory")

        monkeypatch.setattr(live.service, "_load", fail)
        answer = live.post("/admin/reload", {}, headers={"authorization": "Bearer chief"})
        assert answer.status_code == 422
        assert "MemoryError: out of memory" in answer.json()["error"]
        assert live.service.engine is before
        assert live.post("/v1/classify", CLASSIFY).status_code == 200
        assert 'rawloop_reloads_total{result="refused"} 1.0' in live.get("/metrics").text
    assert "Traceback" in caplog.text


def test_draining_answers_what_was_accepted(gated: tuple[LiveServer, Gated]) -> None:
    live, runner = gated
    runner.gate.clear()
    running = in_background(lambda: live.post("/predict", {"inputs": "w1"}))
    until(runner.entered.is_set)
    stopping = asyncio_submit(live)
    until(lambda: live.service.is_draining)
    assert live.get("/health").status_code == 503
    runner.gate.set()
    answer = running.result(TIMEOUT_S)
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    stopping.result(TIMEOUT_S)
    assert live.post("/predict", {"inputs": "w1"}).status_code == 503


def asyncio_submit(live: LiveServer) -> Any:
    return asyncio.run_coroutine_threadsafe(live.service.stop(timeout_s=TIMEOUT_S), live.loop)


# ---- metrics, documentation, logs


def test_metrics_count_what_happened(bundle: Path) -> None:
    with live_server(bundle) as live:
        live.post("/predict", {"inputs": [["w1 good"], ["bad " * 40]]})
        live.post("/v1/classify", {"inputs": []})
        until(lambda: "rawloop_truncated_inputs_total 1.0" in live.get("/metrics").text)  # counted after the answer
        text = live.get("/metrics").text
    for line in (
        'rawloop_requests_total{protocol="tei",status="200"} 1.0',
        'rawloop_requests_total{protocol="native",status="422"} 1.0',
        'rawloop_predicted_labels_total{label="positive"} 1.0',
        "rawloop_truncated_inputs_total 1.0",
        "rawloop_confidence_count 2.0",
        "rawloop_input_tokens_sum 20.0",
        "rawloop_queue_seconds_count 2.0",
        "rawloop_ready 1.0",
        "rawloop_queued_tokens 0.0",
    ):
        assert line in text.splitlines(), line
    assert 'provider="CPUExecutionProvider"' in text


def test_texts_unlike_those_of_the_export_are_drift(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = {
        "label": Distribution(edges=(1, 2), counts=(5, 5, 90)),
        "unknown_tokens": Distribution(edges=(1, 2, 4), counts=(100, 0, 0, 0)),
    }
    bundle = save_served_bundle(tmp_path / "one", reference=reference)
    with live_server(bundle, canary_interval_s=0.01) as live:
        assert live.get("/v1/model").json()["drift"] == {}
        live.post("/v1/classify", {"inputs": ["bad"] * 98})
        live.post("/v1/explain", {"text": "bad " * 12})  # one more; its variants are no live texts
        assert "rawloop_drift{" not in live.get("/metrics").text
        live.post("/v1/classify", {"inputs": ["bad"]})
        until(lambda: live.get("/v1/model").json()["drift"])  # counted after the answer
        drift, text = live.get("/v1/model").json()["drift"], live.get("/metrics").text
        assert drift["label"]["psi"] > drift["label"]["limit"] >= 0.25
        assert drift["unknown_tokens"]["psi"] == pytest.approx(0, abs=0.01)
        assert f'rawloop_drift{{feature="label"}} {drift["label"]["psi"]}' in text.splitlines()
        assert f'rawloop_drift_limit{{feature="label"}} {drift["label"]["limit"]}' in text.splitlines()
        until(lambda: "the last texts differ in label from those of the export" in caplog.text)


def test_every_documented_example_is_answered_as_documented(bundle: Path) -> None:
    with live_server(bundle, admin_keys=("chief",)) as live:
        document = live.get("/openapi.json").json()
        num_examples = 0
        for path, operations in document["paths"].items():
            url = path.format(name="tiny", version="1")
            for method, operation in operations.items():
                assert operation["summary"]
                if method == "get":
                    assert live.get(url).status_code == 200, url
                    continue
                body = operation["requestBody"]["content"]["application/json"]
                assert body["schema"]["$ref"].removeprefix("#/components/schemas/") in document["components"]["schemas"]
                for name, example in body["examples"].items():
                    num_examples += 1
                    answer = live.post(url, example["value"], headers={"authorization": "Bearer chief"})
                    needs_pairs = "pair" in name or "/models/" in str(example)
                    assert answer.status_code == (422 if needs_pairs else 200), (url, name)
        assert num_examples >= 12
        assert "swagger" in live.get("/docs").text.lower()


def test_documented_errors_are_those_of_their_status(server: LiveServer) -> None:
    paths = server.get("/openapi.json").json()["paths"]

    def examples(path: str) -> dict[str, Any]:
        responses = paths[path]["post"]["responses"]
        return {status: each["content"]["application/json"].get("example") for status, each in responses.items()}

    tei = {status: each["error_type"] for status, each in examples("/predict").items() if status != "200"}
    assert tei == {
        "401": "Unauthorized",
        "408": "Timeout",
        "413": "Validation",
        "415": "Validation",
        "422": "Validation",
        "424": "Backend",
        "429": "Overloaded",
        "500": "Backend",
        "503": "Unhealthy",
        "504": "Timeout",
    }
    assert all(
        each["error"]["code"] == int(status) for status, each in examples("/classify").items() if status != "200"
    )
    assert {"400", "404"} <= examples("/v2/models/{name}/infer").keys()
    assert "422" not in examples("/v2/models/{name}/infer")


def test_the_page_may_load_nothing_from_elsewhere(server: LiveServer) -> None:
    page = server.get("/ui")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assert "innerHTML" not in page.text


def test_logs_are_json_and_hold_no_text(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live_server(bundle, access_log=True) as live:
        live.post("/v1/classify", {"inputs": ["secret w1 good"]}, headers={"X-Request-Id": "abc-2"})
        until(lambda: any(record.name == "serve.access" for record in caplog.records))
    records = [record for record in caplog.records if record.name == "serve.access"]
    line = json.loads(JsonFormatter().format(records[0]))
    assert (line["request_id"], line["status"], line["protocol"]) == ("abc-2", 200, "native")
    assert line["latency_ms"] > 0
    assert not any("secret" in JsonFormatter().format(record) for record in caplog.records)


def test_a_path_cannot_forge_a_line_of_the_log(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with live_server(bundle, access_log=True) as live:
        assert live.post("/v2/models/tiny%0A2026-01-01%20forged/infer", CLASSIFY).status_code == 404
        until(lambda: any(record.name == "serve.access" for record in caplog.records))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "serve.access"]
    assert "\n" not in line
    assert "tiny%0A2026" in line


def test_scores_do_not_depend_on_concurrent_requests(server: LiveServer) -> None:
    texts = [f"w{number} good" for number in range(40)]
    alone = [server.post("/predict", {"inputs": text}).json() for text in texts]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda text: server.post("/predict", {"inputs": text}).json(), texts))
    for one, other in zip(alone, together, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in other]
        np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in other], atol=1e-6)
