"""Every wire protocol, with its usual client or the requests in its documentation."""

import json
import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import LiveServer, huggingface_client, live_server, save_served_bundle, until

from serve.contract.bundle import read_bundle
from serve.contract.labels import scores_from_logits
from serve.encoder import Encoder, TextInput
from serve.http.protocols.tei import read_inputs
from serve.session import Session

LABELS = ("negative", "neutral", "positive")
TEXTS = ["w1 good", "bad w2 w3", "w4 w5 w6 w7"]
LONG = " ".join(["w1"] * 30)
PAIRS: list[tuple[str, str]] = [("w1 good", "w2"), ("w3", "bad bad")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "single", temperature=1.5)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with live_server(bundle) as live:
        yield live


@pytest.fixture(scope="module")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "pairs", text_pair_column="text_b")


@pytest.fixture(scope="module")
def pair_server(pair_bundle: Path) -> Iterator[LiveServer]:
    with live_server(pair_bundle) as live:
        yield live


def true_logits(folder: Path, inputs: list[TextInput]) -> np.ndarray[Any, Any]:
    bundle = read_bundle(folder)
    encoder, session = Encoder.from_bundle(bundle), Session(bundle.graph("fp32"))
    return np.concatenate([session.run(encoder.pad(encoder.encode([each]))) for each in inputs])


def true_scores(folder: Path, inputs: list[TextInput]) -> np.ndarray[Any, Any]:
    temperature = read_bundle(folder).classifier.temperature
    return scores_from_logits(true_logits(folder, inputs), temperature)


def by_label(ranked: list[dict[str, Any]]) -> list[float]:
    """Return the values of a ranked list in the order of the labels, after checking that it is ranked."""
    values = [each["score"] for each in ranked]
    assert values == sorted(values, reverse=True)
    found = {each["label"]: each["score"] for each in ranked}
    return [found[label] for label in LABELS]


# ---- Text Embeddings Inference


@pytest.mark.parametrize("inputs", ["w1 good", ["w1 good"]])
def test_tei_one_text_gets_a_flat_list(server: LiveServer, bundle: Path, inputs: Any) -> None:
    answer = server.post("/predict", {"inputs": inputs})
    assert answer.status_code == 200
    np.testing.assert_allclose(by_label(answer.json()), true_scores(bundle, ["w1 good"])[0], atol=1e-6)


def test_tei_a_batch_gets_a_list_of_lists_in_order(server: LiveServer, bundle: Path) -> None:
    answer = server.post("/predict", {"inputs": [[text] for text in TEXTS], "truncate": True})
    np.testing.assert_allclose([by_label(each) for each in answer.json()], true_scores(bundle, list(TEXTS)), atol=1e-6)


def test_tei_two_strings_are_one_pair(pair_server: LiveServer, pair_bundle: Path) -> None:
    answer = pair_server.post("/predict", {"inputs": list(PAIRS[0])})
    np.testing.assert_allclose(by_label(answer.json()), true_scores(pair_bundle, [PAIRS[0]])[0], atol=1e-6)
    batch = pair_server.post("/predict", {"inputs": [list(pair) for pair in PAIRS]})
    np.testing.assert_allclose(
        [by_label(each) for each in batch.json()], true_scores(pair_bundle, list(PAIRS)), atol=1e-6
    )


def test_tei_mixed_batches_are_read_as_its_documents_say() -> None:
    assert read_inputs([["a"], ["b", "c"]]) == (["a", ("b", "c")], True)
    assert read_inputs(["b", "c"]) == ([("b", "c")], False)


def test_tei_what_the_model_was_not_trained_for_is_refused(server: LiveServer, pair_server: LiveServer) -> None:
    for live, inputs in ((server, [["w1"], ["w1", "w2"]]), (pair_server, [["w1"], ["w1", "w2"]])):
        answer = live.post("/predict", {"inputs": inputs})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "Validation")


@pytest.mark.parametrize("inputs", [["w1", "w2"], [["w1"], ["w1", "w2"]]])
def test_tei_explains_what_two_strings_mean(server: LiveServer, inputs: Any) -> None:
    message = server.post("/predict", {"inputs": inputs}).json()["error"]
    assert "one pair of texts in this protocol" in message
    assert '[["a"], ["b"]]' in message
    assert "tuple" not in message


@pytest.mark.parametrize("inputs", [["a", "b", "c"], [["a"], ["a", "b", "c"]]])
def test_tei_says_how_to_send_three_texts(server: LiveServer, inputs: Any) -> None:
    """As its own server, which takes lists of one or two strings, it refuses them."""
    answer = server.post("/predict", {"inputs": inputs})
    assert answer.status_code == 422
    message = answer.json()["error"]
    assert message.startswith("inputs.1: 3 texts" if isinstance(inputs[0], list) else "inputs: 3 texts")
    assert message.endswith('send [["a"], ["b"], ["c"]]')
    assert server.post("/predict", {"inputs": [["a"], ["b"], ["c"]]}).status_code == 200


def test_tei_raw_scores_are_logits(server: LiveServer, bundle: Path) -> None:
    answer = server.post("/predict", {"inputs": "w1 good", "raw_scores": True})
    np.testing.assert_allclose(by_label(answer.json()), true_logits(bundle, ["w1 good"])[0], atol=1e-6)


def test_tei_truncation(server: LiveServer, bundle: Path) -> None:
    text = f"good {LONG} bad"  # 34 tokens for a model of 16
    refused = server.post("/predict", {"inputs": text, "truncate": False})
    assert refused.status_code == 422
    assert "34 tokens" in refused.json()["error"]
    right = server.post("/predict", {"inputs": text, "truncate": True, "truncation_direction": "right"}).json()
    left = server.post("/predict", {"inputs": text, "truncate": True, "truncation_direction": "left"}).json()
    assert by_label(right)[2] > by_label(left)[2], "the one saw good"
    assert by_label(left)[0] > by_label(right)[0], "the other saw bad"


def test_tei_tokenize_has_places_in_the_text(server: LiveServer) -> None:
    rows = server.post("/tokenize", {"inputs": ["Good w1", "w2"]}).json()
    assert [token["text"] for token in rows[0]] == ["[CLS]", "Good", "w1", "[SEP]"]
    assert [token["special"] for token in rows[0]] == [True, False, False, True]
    assert (rows[0][2]["start"], rows[0][2]["stop"]) == (5, 7)
    assert len(server.post("/tokenize", {"inputs": "w2", "add_special_tokens": False}).json()[0]) == 1


def test_tei_info_and_health(server: LiveServer) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_type"]["classifier"]["id2label"] == dict(zip("012", LABELS, strict=True))
    assert info["provider"] == "CPUExecutionProvider"
    assert info["max_input_length"] == 16
    assert "max_concurrent_requests" not in info, "there is no such limit"
    assert server.get("/health").status_code == 200


# ---- Hugging Face


@pytest.fixture
def inference_client(server: LiveServer) -> Iterator[Any]:
    with huggingface_client(server.url) as client:
        yield client


def test_inference_client(inference_client: Any, bundle: Path) -> None:
    client = inference_client
    elements = client.text_classification("w1 good")
    assert elements[0].label == "positive"
    np.testing.assert_allclose(
        sorted(each.score for each in elements), sorted(true_scores(bundle, ["w1 good"])[0]), atol=1e-6
    )
    assert len(client.text_classification("w1 good", top_k=1)) == 1
    raw = client.text_classification("w1 good", function_to_apply="none")
    np.testing.assert_allclose(
        sorted(each.score for each in raw), sorted(true_logits(bundle, ["w1 good"])[0]), atol=1e-6
    )
    sigmoid = client.text_classification("w1 good", function_to_apply="sigmoid")
    expected = 1 / (1 + np.exp(-true_logits(bundle, ["w1 good"])[0]))
    np.testing.assert_allclose(sorted(each.score for each in sigmoid), sorted(expected), atol=1e-6)


def test_inference_client_gets_the_reason(inference_client: Any) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError) as refusal:
        inference_client.text_classification("w1", top_k=0)
    assert "top_k" in str(refusal.value)


@pytest.mark.parametrize(
    ("parameters", "status", "complaint"),
    [
        ({"truncation": True, "max_length": 16, "padding": True}, 200, ""),
        ({"truncation": "longest_first", "max_length": 512, "padding": "max_length"}, 200, ""),
        ({"truncation": None, "max_length": None, "padding": None}, 200, ""),
        ({"truncation": False}, 422, "32 tokens, more than the 16"),
        ({"truncation": "do_not_truncate"}, 422, "32 tokens, more than the 16"),
        ({"truncation": "only_first"}, 422, "should be True, False, 'longest_first' or 'do_not_truncate'"),
        ({"max_length": 8}, 422, "reads 16 tokens at a time; .* --max_length 8"),
        ({"return_all_scores": True}, 422, "return_all_scores: .* not permitted"),
    ],
)
def test_hugging_face_parameters_have_an_effect_or_are_refused(
    server: LiveServer, parameters: dict[str, Any], status: int, complaint: str
) -> None:
    answer = server.post("/", {"inputs": LONG, "parameters": parameters})
    assert answer.status_code == status
    if complaint:
        assert re.search(complaint, answer.json()["error"])


def test_hugging_face_batches_and_pairs(server: LiveServer, pair_server: LiveServer, bundle: Path) -> None:
    batch = server.post("/", {"inputs": TEXTS}).json()
    np.testing.assert_allclose([by_label(each) for each in batch], true_scores(bundle, list(TEXTS)), atol=1e-6)
    pair = pair_server.post("/", {"inputs": {"text": PAIRS[0][0], "text_pair": PAIRS[0][1]}}).json()
    assert len(pair[0]) == 3


# ---- Open Inference Protocol


@pytest.mark.parametrize("binary", [False, True])
def test_triton_client(server: LiveServer, bundle: Path, binary: bool) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.is_model_ready("tiny", "1")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        assert client.get_model_metadata("tiny")["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        texts = [*TEXTS, "ä 😀 good"]
        tensor = triton.InferInput("text", [len(texts)], "BYTES")
        tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_), binary_data=binary)
        outputs = [
            triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "score", "scores", "logits")
        ]
        result = client.infer("tiny", [tensor], outputs=outputs, request_id="42")
        expected = true_scores(bundle, list(texts))
        np.testing.assert_allclose(result.as_numpy("scores"), expected, atol=1e-6)
        np.testing.assert_allclose(result.as_numpy("score"), expected.max(axis=1), atol=1e-6)
        np.testing.assert_allclose(result.as_numpy("logits"), true_logits(bundle, list(texts)), atol=1e-5)
        labels = [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy("label")]
        assert labels == [LABELS[best] for best in expected.argmax(axis=1)]
        assert result.get_response()["id"] == "42"
        default = client.infer("tiny", [tensor])
        np.testing.assert_allclose(default.as_numpy("scores"), expected, atol=1e-6)


def test_triton_client_with_pairs(pair_server: LiveServer, pair_bundle: Path) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(pair_server.url.removeprefix("http://")) as client:
        tensors = []
        for name, column in zip(("text", "text_pair"), zip(*PAIRS, strict=True), strict=True):
            tensors.append(triton.InferInput(name, [2, 1], "BYTES"))
            tensors[-1].set_data_from_numpy(np.array([[text.encode()] for text in column], dtype=np.object_))
        result = client.infer("tiny", tensors)
        np.testing.assert_allclose(result.as_numpy("scores"), true_scores(pair_bundle, list(PAIRS)), atol=1e-6)


def test_triton_client_reads_configuration_statistics_and_the_models(bundle: Path) -> None:
    import tritonclient.http as triton

    with live_server(bundle) as live, triton.InferenceServerClient(live.url.removeprefix("http://")) as client:
        (before,) = client.get_inference_statistics("tiny", "1")["model_stats"]
        tensor = triton.InferInput("text", [2], "BYTES")
        tensor.set_data_from_numpy(np.array([b"w1", b"w2 good"], dtype=np.object_))
        client.infer("tiny", [tensor])
        statistics = partial(client.get_inference_statistics, "tiny")
        until(lambda: statistics()["model_stats"][0]["inference_count"] - before["inference_count"] == 2)
        (after,) = statistics()["model_stats"]
        assert after["execution_count"] > before["execution_count"]
        spent, success = (after["inference_stats"][name] for name in ("compute_infer", "success"))
        assert success["ns"] >= spent["ns"] > before["inference_stats"]["compute_infer"]["ns"]
        config = client.get_model_config("tiny")
        assert config["input"] == [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}]
        assert {"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 3]} in config["output"]
        listed = [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
        assert client.get_model_repository_index() == listed
        assert live.post("/v2/repository/index", {"ready": True}).json() == listed
        with pytest.raises(triton.InferenceServerException, match="no model 'other'"):
            client.get_model_config("other")


def test_triton_client_gets_the_reason(server: LiveServer) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        tensor = triton.InferInput("text", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b"w1"], dtype=np.object_))
        with pytest.raises(InferenceServerException, match="no model 'other'"):
            client.infer("other", [tensor])
        with pytest.raises(InferenceServerException, match="no output"):
            client.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput("nothing")])


@pytest.mark.parametrize(
    ("binary", "size", "complaint"),
    [
        (struct.pack("<I", 9) + b"w1", 6, "ends within a string"),
        (b"\x01\x00", 2, "ends within a string"),
        (struct.pack("<I", 2) + b"\xff\xfe", 6, "not UTF-8"),
        (struct.pack("<I", 2) + b"w1", 99, "does not fit"),
        (struct.pack("<I", 2) + b"w1" + b"rest", 6, "after the last tensor"),
    ],
)
def test_damaged_binary_tensors_are_refused(server: LiveServer, binary: bytes, size: int, complaint: str) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = server.post(
        "/v2/models/tiny/infer", data=head + binary, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert answer.status_code == 400
    assert complaint in answer.json()["error"]


# ---- infinity


def test_a_binary_tensor_of_too_many_texts_is_refused_unread(server: LiveServer) -> None:
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 1_800_000}}
    header = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    answer = server.post("/v2/models/tiny/infer", data=header + bytes(1_800_000), headers=headers)
    assert (answer.status_code, "more than 256 texts" in answer.json()["error"]) == (413, True)


def test_infinity(server: LiveServer, bundle: Path) -> None:
    answer = server.post("/classify", {"input": TEXTS, "model": "tiny", "raw_scores": False}).json()
    assert (answer["object"], answer["model"]) == ("classify", "tiny")
    np.testing.assert_allclose([by_label(each) for each in answer["data"]], true_scores(bundle, list(TEXTS)), atol=1e-6)
    assert answer["usage"] == {"prompt_tokens": 4 + 5 + 6, "total_tokens": 15}
    raw = server.post("/classify", {"input": TEXTS[:1], "raw_scores": True}).json()
    np.testing.assert_allclose(by_label(raw["data"][0]), true_logits(bundle, list(TEXTS[:1]))[0], atol=1e-6)
    assert server.get("/models").json()["data"][0]["id"] == "tiny"
    refused = server.post("/classify", {"input": TEXTS, "model": "other"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, 404)


# ---- our own


def test_native_results_report_what_the_model_saw(server: LiveServer, bundle: Path) -> None:
    body = {"inputs": ["w1 good", {"text": LONG}], "logits": True}
    answer = server.post("/v1/classify", body).json()
    short, long = answer["results"]
    assert answer["model"] == {"name": "tiny", "version": server.service.engine.facts.version, "variant": "fp32"}
    assert (short["label"], short["num_tokens"], short["truncated"]) == ("positive", 4, False)
    assert (long["num_tokens"], long["truncated"]) == (16, True)
    np.testing.assert_allclose(by_label(short["scores"]), true_scores(bundle, ["w1 good"])[0], atol=1e-6)
    np.testing.assert_allclose(
        [short["logits"][label] for label in LABELS], true_logits(bundle, ["w1 good"])[0], atol=1e-6
    )


def test_native_a_bad_input_does_not_affect_the_others(server: LiveServer) -> None:
    body = {"inputs": ["w1 good", LONG, {"text": "w1", "text_pair": "w2"}], "truncation": "error", "top_k": 1}
    answer = server.post("/v1/classify", body)
    good, long, pair = answer.json()["results"]
    assert answer.status_code == 200
    assert [each["label"] for each in good["scores"]] == ["positive"]
    assert (long["error"]["type"], pair["error"]["type"]) == ("Validation", "Validation")


def test_native_all_bad_is_an_error(server: LiveServer) -> None:
    answer = server.post("/v1/classify", {"inputs": [LONG, LONG], "truncation": "error"})
    assert answer.status_code == 422
    assert len(answer.json()["results"]) == 2


def test_native_pairs_and_batches_cannot_be_confused(pair_server: LiveServer, pair_bundle: Path) -> None:
    body = {"inputs": [{"text": first, "text_pair": second} for first, second in PAIRS]}
    answer = pair_server.post("/v1/classify", body).json()
    np.testing.assert_allclose(
        [by_label(each["scores"]) for each in answer["results"]], true_scores(pair_bundle, list(PAIRS)), atol=1e-6
    )
    assert pair_server.post("/v1/classify", {"inputs": [["w1", "w2"]]}).status_code == 422


def test_native_explains_by_leaving_words_out(server: LiveServer, bundle: Path) -> None:
    answer = server.post("/v1/explain", {"text": "w1 good w2"}).json()
    assert answer["label"] == "positive"
    drops = {word["text"]: word["drop"] for word in answer["words"]}
    full, without = true_scores(bundle, ["w1 good w2", "w1  w2"])
    assert drops["good"] == pytest.approx(full[2] - without[2], abs=1e-6)
    assert max(drops, key=drops.__getitem__) == "good"
    assert [token["text"] for token in answer["tokens"]] == ["[CLS]", "w1", "good", "w2", "[SEP]"]
    long = server.post("/v1/explain", {"text": " ".join(f"w{number % 60}" for number in range(600))}).json()
    assert sum(token["kept"] for token in long["tokens"]) == 16 == long["num_tokens"]
    assert [word["text"] for word in long["words"]] == [f"w{number}" for number in range(16)], "no word beyond"


def test_explaining_a_pair_names_the_text_of_each_word(pair_server: LiveServer) -> None:
    answer = pair_server.post("/v1/explain", {"text": "w1 good", "text_pair": "w2"}).json()
    assert [(word["text"], word["sequence"]) for word in answer["words"]] == [("w1", 0), ("good", 0), ("w2", 1)]


def test_explaining_an_empty_text(server: LiveServer) -> None:
    assert server.post("/v1/explain", {"text": " "}).json()["words"] == []


# ---- all of them


REQUESTS: dict[str, Any] = {
    "/predict": {"inputs": "w1 good"},
    "/": {"inputs": "w1 good"},
    "/classify": {"input": ["w1 good"]},
    "/v2/models/tiny/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["w1 good"]}]},
    "/v1/classify": {"inputs": ["w1 good"]},
}


def test_all_protocols_give_the_same_score(server: LiveServer, bundle: Path) -> None:
    expected = true_scores(bundle, ["w1 good"])[0].max()
    for path, body in REQUESTS.items():
        found = server.post(path, body).json()
        while isinstance(found, list):
            found = found[0]
        for key in ("data", "results", "outputs"):
            found = found.get(key, found) if isinstance(found, dict) else found
            while isinstance(found, list):
                found = found[1] if key == "outputs" else found[0]
        score = found["data"][0] if path.endswith("infer") else found["score"]
        assert score == pytest.approx(expected, abs=1e-6), path


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"{}", b'{"inputs": 3, "input": 3}', b'{"inputs": [], "input": []}', b"\xff"]
)
def test_what_cannot_be_read_is_refused_in_the_protocols_own_words(server: LiveServer, path: str, body: bytes) -> None:
    answer = server.post(path, data=body)
    assert answer.status_code == (400 if path.startswith("/v2") else 422)
    assert answer.json()["error"]


def test_the_card_is_the_bundles(server: LiveServer, tmp_path: Path) -> None:
    answer = server.get("/v1/card")
    assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
    assert answer.text == "# A tiny model\n"
    with live_server(save_served_bundle(tmp_path / "one")) as live:
        (tmp_path / "one" / "README.md").unlink()
        assert live.get("/v1/card").text == answer.text  # as it was when the model was loaded
