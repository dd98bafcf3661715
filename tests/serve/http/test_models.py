"""Several models on one port: each named in every protocol's own way, reloaded, failing and counted on its own."""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from live_server import TIMEOUT_S, LiveServer, huggingface_client, live_server, save_served_bundle, until

from serve.contract.errors import InputError

LABELS = {"one": ("no", "perhaps", "yes"), "other": ("negative", "neutral", "positive")}
TEXTS = ["w1 good", "bad w2"]
CHIEF = {"authorization": "Bearer chief"}
NUM_RELOADS = 20

Ask = Callable[[LiveServer, str], list[str]]
"""Returns the labels that a model of this name gives to TEXTS."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: save_served_bundle(folder / name, labels=labels) for name, labels in LABELS.items()}


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[LiveServer]:
    with live_server(bundles, grpc_port=0, admin_keys=("chief",), predict_route="/vertex") as live:
        yield live


def answered(answer: requests.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def by_triton(module: Any, address: str, name: str) -> list[str]:
    text = module.InferInput("text", [len(TEXTS)], "BYTES")
    text.set_data_from_numpy(np.array([each.encode() for each in TEXTS], dtype=np.object_))
    with module.InferenceServerClient(address) as client:
        found = client.infer(name, [text])
        return [label.decode() for label in found.as_numpy("label")]


def by_huggingface(live: LiveServer, name: str) -> list[str]:
    with huggingface_client(f"{live.url}/models/{name}") as client:
        return [client.text_classification(text)[0].label for text in TEXTS]


def by_kserve(live: LiveServer, name: str) -> list[str]:
    found = answered(live.post(f"/v1/models/{name}:predict", {"instances": TEXTS}))
    return [each["label"] for each in found["predictions"]]


def by_infinity(live: LiveServer, name: str) -> list[str]:
    found = answered(live.post("/classify", {"input": TEXTS, "model": name}))
    assert found["model"] == name
    return [row[0]["label"] for row in found["data"]]


def by_sagemaker(live: LiveServer, name: str) -> list[str]:
    headers = {"X-Amzn-SageMaker-Target-Model": name}
    found = answered(live.post("/invocations", {"instances": TEXTS}, headers=headers))
    return [each["label"] for each in found["predictions"]]


def by_tei(live: LiveServer, name: str) -> list[str]:
    found = answered(live.post(f"/models/{name}/predict", {"inputs": [[text] for text in TEXTS]}))
    return [row[0]["label"] for row in found]


def by_rawloop(live: LiveServer, name: str) -> list[str]:
    found = answered(live.post(f"/models/{name}/v1/classify", {"inputs": TEXTS}))
    assert found["model"]["name"] == name
    return [each["label"] for each in found["results"]]


ASKS: dict[str, Ask] = {
    "Open Inference over HTTP": lambda live, name: by_triton(tritonclient.http, live.url.removeprefix("http://"), name),
    "Open Inference over gRPC": lambda live, name: by_triton(tritonclient.grpc, live.grpc_address, name),
    "Hugging Face": by_huggingface,
    "KServe V1": by_kserve,
    "infinity": by_infinity,
    "SageMaker": by_sagemaker,
    "Text Embeddings Inference": by_tei,
    "rawloop": by_rawloop,
}


def expected(name: str) -> list[str]:
    return [LABELS[name][2], LABELS[name][0]]


@pytest.mark.parametrize("protocol", ASKS)
@pytest.mark.parametrize("name", LABELS)
def test_each_protocol_names_the_model(server: LiveServer, protocol: str, name: str) -> None:
    assert ASKS[protocol](server, name) == expected(name)


def test_nothing_is_lost_or_crossed_while_one_of_two_busy_models_is_reloaded_twenty_times(server: LiveServer) -> None:
    is_over = threading.Event()

    def client(name: str, ask: Ask) -> int:
        num_answers = 0
        while not is_over.is_set() or not num_answers:
            assert ask(server, name) == expected(name)
            num_answers += 1
        return num_answers

    asks = {protocol: ask for protocol, ask in ASKS.items() if protocol != "Hugging Face"}  # its set-up is global
    asks["Hugging Face"] = lambda live, name: [
        answered(live.post(f"/models/{name}", {"inputs": text}))[0][0]["label"] for text in TEXTS
    ]
    with concurrent.futures.ThreadPoolExecutor(2 * len(asks)) as pool:
        clients = [pool.submit(client, name, ask) for name in LABELS for ask in asks.values()]
        try:
            before = {service.name: service.engine for service in server.models.services}
            for number in range(NUM_RELOADS):
                path = ("/admin/reload", "/models/one/admin/reload", "/v2/repository/models/one/load")[number % 3]
                answer = server.post(path, {"model": "one"} if number % 3 == 0 else {}, headers=CHIEF)
                assert answer.status_code == 200, answer.text
        finally:
            is_over.set()
        assert all(each.result(TIMEOUT_S) for each in clients)
    after = {service.name: service.engine for service in server.models.services}
    assert (after["one"] is before["one"], after["other"] is before["other"]) == (False, True)


WRONG = {
    "/v2/models/missing": ("get", None),
    "/v2/models/missing/infer": (
        "post",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]},
    ),
    "/v1/models/missing": ("get", None),
    "/v1/models/missing:predict": ("post", {"instances": ["a"]}),
    "/classify": ("post", {"input": ["a"], "model": "missing"}),
    "/models/missing/predict": ("post", {"inputs": "a"}),
    "/models/missing": ("post", {"inputs": "a"}),
    "/models/missing/health": ("get", None),
    "/models/one/v2/models/other": ("get", None),
    "/v2/repository/models/missing/load": ("post", {}),
    "/admin/reload": ("post", {"model": "missing"}),
}
UNNAMED = {
    "/predict": {"inputs": "a"},
    "/": {"inputs": "a"},
    "/v1/classify": {"inputs": ["a"]},
    "/classify": {"input": ["a"]},
    "/invocations": {"instances": ["a"]},
    "/vertex": {"instances": ["a"]},
    "/admin/reload": {},
}


@pytest.mark.parametrize("path", WRONG)
def test_a_wrong_name_gets_404_and_the_names(server: LiveServer, path: str) -> None:
    method, body = WRONG[path]
    answer = server.post(path, body, headers=CHIEF) if method == "post" else server.get(path)
    assert answer.status_code == 404, answer.text
    assert "this server has 'one'" in answer.text


@pytest.mark.parametrize("path", UNNAMED)
def test_a_request_without_a_name_is_told_how_to_name_one(server: LiveServer, path: str) -> None:
    answer = server.post(path, UNNAMED[path], headers=CHIEF)
    assert answer.status_code == 404
    assert "this server has 'one', 'other'; name one before the path, as in /models/one/predict" in answer.text
    if path != "/admin/reload":
        assert server.post(f"/models/one{path}", UNNAMED[path]).status_code == 200, "the advice works"


def test_a_wrong_name_over_grpc_is_not_found(server: LiveServer) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        with pytest.raises(
            tritonclient.grpc.InferenceServerException, match=r"NOT_FOUND.*this server has 'one', 'other'"
        ):
            client.get_model_metadata("missing")
        assert client.is_model_ready("other")


def test_every_list_has_both(server: LiveServer) -> None:
    names = list(LABELS)
    assert [each["id"] for each in server.get("/models").json()["data"]] == names
    assert server.get("/v1/models").json() == {"models": names}
    index = server.post("/v2/repository/index", {}).json()
    assert [(each["name"], each["state"]) for each in index] == [(name, "READY") for name in names]
    assert server.get("/v2/models/other/config").json()["name"] == "other"
    assert server.get("/v2/models/other/stats").json()["model_stats"][0]["name"] == "other"
    assert [each["id"] for each in server.get("/models/other/models").json()["data"]] == ["other"]


def test_the_documentation_of_a_model_calls_that_model(server: LiveServer) -> None:
    document = server.get("/models/other/openapi.json").json()
    assert document["servers"] == [{"url": "/models/other"}]
    assert "'/models/other/openapi.json'" in server.get("/models/other/docs").text.replace('"', "'")
    assert server.get("/models/other/nothing").status_code == 404
    assert server.get("/models/missing/docs").status_code == 404, "no page shows what a path says"


def test_metrics_have_the_models_name_as_a_label(server: LiveServer) -> None:
    answered(server.post("/models/other/predict", {"inputs": "w1 good"}))
    server.get("/health")
    counted = 'rawloop_predicted_labels_total{label="positive",model="other"}'
    until(lambda: counted in server.get("/metrics").text)  # counted after the answer
    text = server.get("/metrics").text
    assert 'rawloop_ready{model="one"} 1.0' in text
    assert 'rawloop_requests_total{model="",protocol="operations",status="200"}' in text
    assert 'rawloop_requests_total{model="other",protocol="tei",status="200"}' in text
    assert 'rawloop_queue_seconds_count{model=""}' not in text
    assert text.count("\nprocess_resident_memory_bytes ") == 1
    assert 'rawloop_model_graph_bytes{model="other"} ' in text
    assert 'model="' not in server.get("/models/other/metrics").text.replace("rawloop_model{", "")


def test_metrics_of_one_model_have_the_series_they_had(bundles: dict[str, Path]) -> None:
    with live_server(bundles["one"]) as live:
        answered(live.post("/predict", {"inputs": "w1 good"}))
        text = live.get("/metrics").text
    assert 'rawloop_requests_total{protocol="tei",status="200"} 1.0' in text
    assert "rawloop_ready 1.0" in text
    assert 'model="' not in text


# ---- failures


def test_a_model_that_breaks_leaves_the_others_at_work(
    bundles: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with live_server(bundles, admin_keys=("chief",)) as live:
        live.service.engine.batcher._shut("a worker died, and is not restarted")
        until(lambda: live.get("/models/one/health").status_code == 503)
        health = live.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["not_ready"] == {"one": "a worker died, and is not restarted"}
        assert (
            live.get("/v2/models/one/ready").status_code == live.post("/models/one", {"inputs": "a"}).status_code == 503
        )
        assert by_rawloop(live, "other") == expected("other")
        assert 'rawloop_ready{model="one"} 0.0' in live.get("/metrics").text
        states = [each["state"] for each in live.post("/v2/repository/index", {}).json()]
        assert states == ["UNAVAILABLE", "READY"]
        assert not live.models.is_broken
        assert live.post("/v2/repository/models/one/load", {}, headers=CHIEF).status_code == 200
        assert by_rawloop(live, "one") == expected("one")
        for service in live.models.services:
            service.engine.batcher._shut("gone")
        until(lambda: live.get("/health").status_code == 503)
        assert live.models.is_broken, "no model is left"


def test_with_exit_one_broken_model_ends_the_server(bundles: dict[str, Path]) -> None:
    with live_server(bundles, on_worker_death="exit") as live:
        live.service.engine.batcher._shut("a worker died, and is not restarted")
        assert live.models.is_broken


def test_a_batch_that_hangs_in_one_model_holds_up_no_other(bundles: dict[str, Path]) -> None:
    opened = threading.Event()
    with live_server(bundles, threads=1, stall_after_s=0.1, canary_interval_s=3600.0) as live:
        (worker,) = live.service.engine.batcher.workers
        run = worker.runner.run
        worker.runner.run = lambda inputs: (opened.wait(TIMEOUT_S), run(inputs))[1]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stuck = pool.submit(by_rawloop, live, "one")
            until(lambda: not worker.is_idle)
            assert by_rawloop(live, "other") == expected("other")
            assert live.get("/health").json()["status"] == "degraded"
            opened.set()
            assert stuck.result(TIMEOUT_S) == expected("one")


def test_a_bundle_that_is_broken_at_the_start_is_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"--bundle second=.*nowhere.*bundle.json: no such file"),
        live_server({"first": bundles["one"], "second": tmp_path / "nowhere"}),
    ):
        pass


def test_a_reload_that_is_refused_names_the_model_and_leaves_both(server: LiveServer, tmp_path: Path) -> None:
    answer = server.post("/admin/reload", {"model": "one", "bundle": str(tmp_path)}, headers=CHIEF)
    assert answer.status_code == 422
    assert "The old model stays" in answer.text
    assert [by_rawloop(server, name) for name in LABELS] == [expected(name) for name in LABELS]


def test_loading_by_tritons_tools_takes_no_other_bundle_and_needs_the_admin_key(server: LiveServer) -> None:
    path = "/v2/repository/models/one/load"
    assert server.post(path, {}).status_code == 401
    assert server.post(path, {"parameters": {"config": "{}"}}, headers=CHIEF).status_code == 400
    with tritonclient.http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        client.load_model("one", headers={"Authorization": "Bearer chief"})


def test_the_memory_of_each_model_is_logged(bundles: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "serve"), live_server(bundles):
        pass
    assert all(any(f"{name}: 0.0 MiB on disk, " in message for message in caplog.messages) for name in LABELS)
