"""What KServe V1, Amazon SageMaker and Vertex AI send, as their documents write it."""

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kind_bundles import save_numbers, save_several_labels
from live_server import LiveServer, live_server, save_served_bundle

from serve.http.settings import parse_settings
from serve.predictor import Predictor

TEXTS = ["w1 good", "bad w2, w3", "w4 w5 w6 w7"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "single", temperature=1.5)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with live_server(bundle, predict_route="/predict/here", health_route="/alive") as live:
        yield live


@pytest.fixture(scope="module")
def expected(bundle: Path) -> list[tuple[str, float]]:
    with Predictor(bundle) as predictor:
        return [(found.label, found.score) for found in predictor(TEXTS)]


def require(predictions: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    assert [each["label"] for each in predictions] == [label for label, _ in expected]
    assert [each["score"] for each in predictions] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_kserve_v1_answers_instances_with_predictions(server: LiveServer, expected: list[tuple[str, float]]) -> None:
    name = server.service.engine.facts.name
    assert server.get("/v1/models").json() == {"models": [name]}
    assert server.get(f"/v1/models/{name}").json() == {"name": name, "ready": True}
    body = {"instances": [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]], "parameters": {"top_k": 1}}
    answer = server.post(f"/v1/models/{name}:predict", body)
    assert answer.status_code == 200
    require(answer.json()["predictions"], expected)
    assert [len(each["scores"]) for each in answer.json()["predictions"]] == [1, 1, 1]


def test_vertex_ai_names_its_routes(server: LiveServer, expected: list[tuple[str, float]]) -> None:
    require(server.post("/predict/here", {"instances": TEXTS, "parameters": None}).json()["predictions"], expected)
    assert server.get("/alive").status_code == 200
    environment = {"AIP_HTTP_PORT": "8080", "AIP_PREDICT_ROUTE": "/v1/endpoints/1:predict", "AIP_HEALTH_ROUTE": "/h"}
    settings = parse_settings(["--bundle", "b"], environment)
    assert (settings.port, settings.predict_route, settings.health_route) == (8080, "/v1/endpoints/1:predict", "/h")
    assert parse_settings(["--bundle", "b"], environment | {"RAWLOOP_PORT": "9"}).port == 9


def test_sagemaker_answers_in_the_form_that_it_is_asked_in(
    server: LiveServer, expected: list[tuple[str, float]]
) -> None:
    assert server.get("/ping").status_code == 200

    def invoke(body: str, kind: str) -> Any:
        answer = server.post("/invocations", data=body.encode(), headers={"content-type": kind})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith(kind.partition(";")[0])
        return answer

    require(invoke(json.dumps({"instances": TEXTS}), "application/json; charset=utf-8").json()["predictions"], expected)
    lines = "".join(json.dumps(text if place else {"text": text}) + "\n" for place, text in enumerate(TEXTS))
    require([json.loads(line) for line in invoke(lines, "application/jsonlines").text.splitlines()], expected)
    written = io.StringIO()
    csv.writer(written).writerows([text] for text in TEXTS)
    rows = list(csv.reader(io.StringIO(invoke(written.getvalue(), "text/csv").text)))
    require([{"label": label, "score": float(score)} for label, score in rows], expected)


@pytest.mark.parametrize(
    ("path", "kind", "body", "status", "message"),
    [
        ("/v1/models/other:predict", "application/json", b'{"instances": ["a"]}', 404, "no model 'other'"),
        ("/invocations", "application/json", b'{"instances": []}', 400, "instances"),
        ("/invocations", "application/json", b'{"instances": ["a"], "parameters": {"k": 1}}', 400, "parameters.k"),
        ("/invocations", "application/jsonlines", b'"a"\n{"text": 1}\n', 400, "1.TextOrPair"),
        ("/invocations", "application/jsonlines", b'"a", "b"\n', 400, "2 values on 1 lines; write one a line"),
        ("/invocations", "application/jsonlines", b"\n", 400, "at least 1 item"),
        ("/invocations", "application/jsonlines", b'"a"], ["b"\n', 400, "JSON"),
        ("/invocations", "text/csv", b"a,b,c\n", 400, "row 1 has 3 fields"),
        ("/invocations", "text/csv", b'"a\n', 400, "not csv in UTF-8"),
        ("/invocations", "text/csv", b"\xff\n", 400, "not csv in UTF-8"),
        ("/invocations", "text/csv", b"\n", 400, "no rows"),
        ("/invocations", "image/png", b"", 415, "content type 'image/png'; this server takes application/json"),
    ],
)
def test_bad_input(server: LiveServer, path: str, kind: str, body: bytes, status: int, message: str) -> None:
    answer = server.post(path, data=body, headers={"content-type": kind})
    assert (answer.status_code, message in answer.json().get("error", "")) == (status, True), answer.text


def test_several_labels_and_numbers_in_csv(tmp_path: Path) -> None:
    for save in (partial(save_several_labels, labels=("joy; love", "fear", 'a "b"')), save_numbers):
        folder = save(tmp_path / str(save is save_numbers))
        with Predictor(folder) as predictor, live_server(folder) as live:
            (found,) = predictor(["w1 good"])
            answer = live.post("/invocations", data=b"w1 good\n", headers={"content-type": "text/csv"})
            (row,) = csv.reader(io.StringIO(answer.text))
            if save is save_numbers:
                assert [float(cell) for cell in row] == pytest.approx([found.value], abs=1e-6)
            else:
                assert len(found.labels) > 1
                assert next(csv.reader([row[0]], delimiter=";")) == list(found.labels)
                assert float(row[1]) == pytest.approx(max(found.scores.values()), abs=1e-6)


def test_pairs_are_two_fields(tmp_path: Path) -> None:
    folder = save_served_bundle(tmp_path / "pairs", text_pair_column="text_b")
    with Predictor(folder) as predictor, live_server(folder) as live:
        (found,) = predictor([("w1 good", "w2")])
        answer = live.post("/invocations", data=b"w1 good,w2\n", headers={"content-type": "text/csv"})
        label, score = next(csv.reader(io.StringIO(answer.text)))
        assert (label, float(score)) == (found.label, pytest.approx(found.score, abs=1e-6))


@pytest.mark.parametrize("path", ["predict", "/a/{b}"])
def test_a_route_must_be_a_path(path: str) -> None:
    from serve.contract.errors import InputError

    with pytest.raises(InputError, match="--predict_route must be a path, such as /predict"):
        parse_settings(["--bundle", "b", "--predict_route", path], {})
