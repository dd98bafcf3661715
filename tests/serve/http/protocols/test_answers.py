"""Several labels and numbers through every protocol: equal to what the logits say."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kind_bundles import (
    HIGH,
    LABELS,
    LOW,
    TEXTS,
    THRESHOLDS,
    WIDTH,
    given_labels,
    interval_of,
    logits_of,
    save_numbers,
    save_several_labels,
    several_scores,
    values_of,
)
from live_server import LiveServer, huggingface_client, live_server, save_served_bundle, until

from serve.batching.engine import CanaryFailed
from serve.contract.bundle import NumberAgreement, read_bundle, write_manifest
from serve.contract.decision import Decision

CHIEF = {"authorization": "Bearer chief"}


@pytest.fixture(scope="module")
def several_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_several_labels(tmp_path_factory.mktemp("bundles") / "several")


@pytest.fixture(scope="module")
def several(several_bundle: Path) -> Iterator[LiveServer]:
    with live_server(several_bundle) as live:
        yield live


@pytest.fixture(scope="module")
def numbers_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_numbers(tmp_path_factory.mktemp("bundles") / "numbers")


@pytest.fixture(scope="module")
def numbers(numbers_bundle: Path) -> Iterator[LiveServer]:
    with live_server(numbers_bundle) as live:
        yield live


def rows_of(ranked: list[list[dict[str, Any]]]) -> list[list[float]]:
    """Return the values of ranked lists in the order of the labels, after checking that they are ranked."""
    for row in ranked:
        assert [each["score"] for each in row] == sorted((each["score"] for each in row), reverse=True)
    return [[{each["label"]: each["score"] for each in row}[label] for label in LABELS] for row in ranked]


# ---- one label: nothing new


def test_one_label_is_answered_as_before(tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "b")) as live:
        (result,) = live.post("/v1/classify", {"inputs": ["w1 good"]}).json()["results"]
        assert list(result) == ["label", "score", "scores", "num_tokens", "truncated"]
        explanation = live.post("/v1/explain", {"text": "w1 good"}).json()
        assert list(explanation) == [
            *("model", "label", "score", "scores", "words", "tokens", "num_tokens", "truncated", "inference_ms")
        ]
        model = live.get("/v1/model").json()
        assert "problem_type" not in model
        assert model["decision"] == {"abstain": "none", "abstain_below": 0.0, "set_cuts": {}}
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1 good"]}
        outputs = live.post("/v2/models/tiny/infer", {"inputs": [tensor]}).json()["outputs"]
        assert [each["name"] for each in outputs] == ["label", "score", "scores"]
        names = [each["name"] for each in live.get("/v2/models/tiny").json()["outputs"]]
        assert names == ["label", "score", "scores", "logits"]


# ---- rawloop


def test_native_gives_every_label_that_reaches_its_threshold(several: LiveServer, several_bundle: Path) -> None:
    scores = several_scores(several_bundle)
    results = several.post("/v1/classify", {"inputs": TEXTS, "logits": True}).json()["results"]
    for result, row, labels in zip(results, scores, given_labels(scores), strict=True):
        assert result["labels"] == labels
        assert (result["label"], result["score"]) == (LABELS[row.argmax()], pytest.approx(row.max(), abs=1e-6))
        assert "abstained" not in result
    np.testing.assert_allclose(rows_of([each["scores"] for each in results]), scores, atol=1e-6)
    (best,) = several.post("/v1/classify", {"inputs": TEXTS[:1], "top_k": 1}).json()["results"]
    assert (len(best["scores"]), best["labels"]) == (1, given_labels(scores)[0])
    refused = several.post("/v1/classify", {"inputs": TEXTS, "coverage": 0.9})
    assert refused.status_code == 422
    assert "this model gives labels by thresholds, without a coverage" in refused.json()["error"]["message"]


def test_native_gives_numbers_and_their_interval(numbers: LiveServer, numbers_bundle: Path) -> None:
    results = numbers.post("/v1/classify", {"inputs": TEXTS, "coverage": 0.9}).json()["results"]
    for result, value in zip(results, values_of(numbers_bundle), strict=True):
        assert list(result) == ["value", "interval", "num_tokens", "truncated"]
        assert result["value"] == pytest.approx(value, abs=1e-5)
        assert result["interval"] == pytest.approx(list(interval_of(value)), abs=1e-5)
    assert "interval" not in numbers.post("/v1/classify", {"inputs": TEXTS}).json()["results"][0]
    refused = numbers.post("/v1/classify", {"inputs": TEXTS, "coverage": 0.5})
    assert refused.status_code == 422
    assert "no coverage 0.5 in classifier.json; it has 0.9, 0.8" in refused.json()["error"]["message"]


def test_the_model_says_what_it_answers(several: LiveServer, numbers: LiveServer) -> None:
    model = several.get("/v1/model").json()
    assert model["problem_type"] == "multi_label_classification"
    assert model["decision"] == {"threshold": "f1", "thresholds": dict(zip(LABELS, THRESHOLDS, strict=True))}
    model = numbers.get("/v1/model").json()
    assert (model["problem_type"], model["labels"]) == ("regression", ["price"])
    assert model["decision"] == {
        "value_range": [LOW, HIGH],
        "interval_widths": {"0.9": WIDTH, "0.8": 2.0},
        "interval_edges": [],
    }


# ---- Text Embeddings Inference, infinity


def test_tei_and_infinity_give_independent_scores(several: LiveServer, several_bundle: Path) -> None:
    scores, logits = several_scores(several_bundle), logits_of(several_bundle)
    for raw, expected in ((False, scores), (True, logits)):
        tei = several.post("/predict", {"inputs": [[text] for text in TEXTS], "raw_scores": raw}).json()
        np.testing.assert_allclose(rows_of(tei), expected, atol=1e-6)
        infinity = several.post("/classify", {"input": TEXTS, "raw_scores": raw}).json()
        np.testing.assert_allclose(rows_of(infinity["data"]), expected, atol=1e-6)


def test_tei_and_infinity_give_numbers(numbers: LiveServer, numbers_bundle: Path) -> None:
    values, logits = values_of(numbers_bundle), logits_of(numbers_bundle)[:, 0]
    for raw, expected in ((False, values), (True, logits)):
        tei = numbers.post("/predict", {"inputs": [[text] for text in TEXTS], "raw_scores": raw}).json()
        infinity = numbers.post("/classify", {"input": TEXTS, "raw_scores": raw}).json()["data"]
        for found in (tei, infinity):
            assert [[each["label"] for each in row] for row in found] == [["price"]] * len(TEXTS)
            np.testing.assert_allclose([row[0]["score"] for row in found], expected, atol=1e-5)


# ---- Hugging Face


def test_hugging_face_applies_the_function_that_is_asked_for(several: LiveServer, several_bundle: Path) -> None:
    scores, logits = several_scores(several_bundle), logits_of(several_bundle)
    powers = np.exp(logits)
    softmax = powers / powers.sum(axis=1, keepdims=True)
    for function, expected in ((None, scores), ("sigmoid", scores), ("softmax", softmax), ("none", logits)):
        found = several.post("/", {"inputs": TEXTS, "parameters": {"function_to_apply": function}}).json()
        np.testing.assert_allclose(rows_of(found), expected, atol=1e-6, err_msg=str(function))
    best = several.post("/", {"inputs": TEXTS, "parameters": {"top_k": 1}}).json()
    assert [[each["label"] for each in row] for row in best] == [[LABELS[row.argmax()]] for row in scores]


def test_hugging_face_gives_numbers(numbers: LiveServer, numbers_bundle: Path) -> None:
    logits = logits_of(numbers_bundle)[:, 0]
    values, sigmoid = values_of(numbers_bundle), 1 / (1 + np.exp(-logits))
    for function, expected in ((None, values), ("none", values), ("sigmoid", sigmoid), ("softmax", 1.0)):
        found = numbers.post("/", {"inputs": TEXTS, "parameters": {"function_to_apply": function}}).json()
        np.testing.assert_allclose([row[0]["score"] for row in found], expected, atol=1e-5, err_msg=str(function))


# ---- Open Inference Protocol


@pytest.mark.parametrize("binary", [False, True])
def test_triton_client_gets_decisions(several: LiveServer, several_bundle: Path, binary: bool) -> None:
    import tritonclient.http as triton

    scores = several_scores(several_bundle)
    with triton.InferenceServerClient(several.url.removeprefix("http://")) as client:
        described = {each["name"]: each for each in client.get_model_metadata("tiny")["outputs"]}
        assert list(described) == ["label", "score", "scores", "decisions", "logits"]
        assert described["decisions"] == {"name": "decisions", "datatype": "BOOL", "shape": [-1, 3]}
        tensor = triton.InferInput("text", [len(TEXTS)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_), binary_data=binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("decisions", "scores")]
        result = client.infer("tiny", [tensor], outputs=outputs)
        assert result.as_numpy("decisions").dtype == np.bool_
        np.testing.assert_array_equal(result.as_numpy("decisions"), scores >= np.array(THRESHOLDS))
        np.testing.assert_allclose(result.as_numpy("scores"), scores, atol=1e-6)
        default = client.infer("tiny", [tensor])
        np.testing.assert_array_equal(default.as_numpy("decisions"), scores >= np.array(THRESHOLDS))


@pytest.mark.parametrize("binary", [False, True])
def test_triton_client_gets_numbers(numbers: LiveServer, numbers_bundle: Path, binary: bool) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(numbers.url.removeprefix("http://")) as client:
        described = {each["name"]: each for each in client.get_model_metadata("tiny")["outputs"]}
        assert list(described) == ["value", "scores", "logits"]
        assert described["value"] == {"name": "value", "datatype": "FP32", "shape": [-1]}
        tensor = triton.InferInput("text", [len(TEXTS)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_), binary_data=binary)
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("value", "logits")]
        result = client.infer("tiny", [tensor], outputs=outputs)
        np.testing.assert_allclose(result.as_numpy("value"), values_of(numbers_bundle), rtol=1e-6)
        np.testing.assert_allclose(result.as_numpy("logits"), logits_of(numbers_bundle), atol=1e-6)
        np.testing.assert_allclose(
            client.infer("tiny", [tensor]).as_numpy("scores")[:, 0], values_of(numbers_bundle), rtol=1e-6
        )
        with pytest.raises(InferenceServerException, match="no output 'label'; expected value, scores, logits"):
            client.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput("label")])


# ---- explanations


def test_a_chosen_label_is_explained(several: LiveServer, several_bundle: Path) -> None:
    text = "w1 good w3"
    whole, *without = several_scores(several_bundle, [text, "good w3", "w1 w3", "w1 good"])
    for label, index in ((None, int(whole.argmax())), ("anger", 0), ("fear", 1)):
        found = several.post("/v1/explain", {"text": text, "label": label}).json()
        assert (found["label"], found["score"]) == (LABELS[index], pytest.approx(whole[index], abs=1e-6))
        assert found["labels"] == given_labels(whole[None])[0]
        drops = [word["drop"] for word in found["words"]]
        np.testing.assert_allclose(drops, [whole[index] - row[index] for row in without], atol=1e-6)
    refused = several.post("/v1/explain", {"text": text, "label": "hate"})
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "label: no label 'hate'; GET /v1/model lists this model's labels"


def test_the_change_of_a_number_is_explained(numbers: LiveServer, numbers_bundle: Path) -> None:
    whole, first, second = values_of(numbers_bundle, ["w1 bad", "bad", "w1"])
    found = numbers.post("/v1/explain", {"text": "w1 bad"}).json()
    assert found["value"] == pytest.approx(whole, abs=1e-5)
    assert "score" not in found
    assert [word["drop"] for word in found["words"]] == pytest.approx([whole - first, whole - second], abs=1e-5)


def test_an_explanation_says_that_the_model_abstained(tmp_path: Path) -> None:
    decision = Decision(abstain="score<0.6", abstain_below=0.6)
    with live_server(save_served_bundle(tmp_path / "b", decision=decision)) as live:
        for text, abstained in (("good", False), ("w1 w2", True)):
            assert live.post("/v1/explain", {"text": text}).json()["abstained"] is abstained
            (kserve,) = live.post("/v1/models/tiny:predict", {"instances": [text]}).json()["predictions"]
            assert kserve["abstained"] is abstained
        metrics_with(live, "rawloop_abstained_inputs_total 2.0")  # w1 w2, twice; the texts made of it are no traffic


# ---- operations


def metrics_with(live: LiveServer, line: str) -> str:
    """Return the metrics once they have a line: batches are counted after their answers are out."""
    until(lambda: line in live.get("/metrics").text)
    return live.get("/metrics").text


def test_metrics_count_each_given_label(several_bundle: Path, numbers_bundle: Path) -> None:
    given = given_labels(several_scores(several_bundle))
    with live_server(several_bundle) as live:
        live.post("/v1/classify", {"inputs": TEXTS})
        metrics = metrics_with(live, f"rawloop_confidence_count {len(TEXTS)}.0")
    for label in LABELS:
        count = sum(label in labels for labels in given)
        assert f'rawloop_predicted_labels_total{{label="{label}"}} {count}.0' in metrics
    assert f"rawloop_abstained_inputs_total {given.count([])}.0" in metrics
    with live_server(numbers_bundle) as live:
        live.post("/v1/classify", {"inputs": TEXTS})
        metrics = metrics_with(live, f'rawloop_predicted_value_count{{label="price"}} {len(TEXTS)}.0')
    assert "rawloop_confidence_count 0.0" in metrics
    assert "rawloop_predicted_labels_total{" not in metrics


def test_another_kind_is_loaded_only_when_asked_for(several_bundle: Path, numbers_bundle: Path) -> None:
    with live_server(several_bundle, admin_keys=("chief",)) as live:
        other = {"bundle": str(numbers_bundle)}
        refused = live.post("/admin/reload", other, headers=CHIEF)
        assert refused.status_code == 422
        message = refused.json()["error"]
        assert "its problem_type is regression, that of the served model multi_label_classification" in message
        assert message.endswith(
            'POST /admin/reload with "change_problem_type": true, or restart the server. The old model stays'
        )
        assert live.post("/v1/classify", {"inputs": TEXTS}).json()["results"][0]["labels"]
        assert live.post("/admin/reload", other | {"change_problem_type": True}, headers=CHIEF).status_code == 200
        assert "value" in live.post("/v1/classify", {"inputs": TEXTS}).json()["results"][0]
        assert live.post("/admin/reload", other, headers=CHIEF).status_code == 200, "the same kind"


def test_the_canary_of_numbers_is_judged_by_their_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_bundle(folder := save_numbers(tmp_path / "b")).manifest
    fp32 = manifest.variants["fp32"]
    same = NumberAgreement(spread=12.5, change=0.0, max_batch_change=0.0, spearman_with_pytorch=1.0)
    fp32 = dataclasses.replace(fp32, verification=dataclasses.replace(fp32.verification, numbers=same))
    write_manifest(folder, dataclasses.replace(manifest, variants={"fp32": fp32}))
    with live_server(folder) as live:
        engine = live.service.engine
        (right,) = engine.facts.canary_logits
        monkeypatch.setattr(engine, "facts", dataclasses.replace(engine.facts, canary_logits=(right + 0.5,)))
        live.run(lambda: engine.check_canary(5.0))
        monkeypatch.setattr(engine, "facts", dataclasses.replace(engine.facts, canary_logits=(right + 0.75,)))
        with pytest.raises(CanaryFailed, match=r"numbers differ by 0.750 from those at export \(allowed: 0.625\)"):
            live.run(lambda: engine.check_canary(5.0))


def test_hugging_faces_client_gets_independent_scores_and_numbers(
    several: LiveServer, several_bundle: Path, numbers: LiveServer, numbers_bundle: Path
) -> None:
    with huggingface_client(several.url) as client:
        for text, expected in zip(TEXTS, several_scores(several_bundle), strict=True):
            found = {each.label: each.score for each in client.text_classification(text, top_k=len(LABELS))}
            np.testing.assert_allclose([found[label] for label in LABELS], expected, atol=1e-6)
    with huggingface_client(numbers.url) as client:
        for text, expected in zip(TEXTS, values_of(numbers_bundle), strict=True):
            (found,) = client.text_classification(text)
            assert found.score == pytest.approx(expected, abs=1e-6)
