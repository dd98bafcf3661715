"""Long texts, served: the same answers from Predictor, files and HTTP, and those of one window as ever."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from live_server import live_server, save_served_bundle
from tiny_bundles import VOCABULARY, save_tiny_bundle, token_weights

from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError
from serve.contract.labels import scores_from_logits
from serve.contract.long_texts import LongTexts
from serve.encoder import Encoder, ItemError
from serve.predict import main as predict
from serve.predictor import Predictor

WINDOWS = LongTexts(strategy="windows", max_windows=4)
SHORT, LONG = "w1 good", "good " * 20 + "bad " * 15  # of 1 and of 3 windows
TOO_LONG = "w3 " * 100
LABELS = ("negative", "neutral", "positive")


def logits_by_hand(text: str, windows: list[slice]) -> np.ndarray:
    """Return the mean over windows of the mean over their tokens' weights [C]."""
    ids, table = [VOCABULARY[word] for word in text.split()], token_weights()
    ends = [VOCABULARY["[CLS]"]], [VOCABULARY["[SEP]"]]
    means = [table[[*ends[0], *ids[window], *ends[1]], 0].mean(axis=0) for window in windows]
    return np.mean(means, axis=0)


THIRDS = [slice(0, 12), slice(12, 23), slice(23, 35)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return save_served_bundle(tmp_path / "bundle", long_texts=WINDOWS)


def test_predictions_are_pooled_over_the_windows_and_say_where_they_come_from(bundle: Path) -> None:
    with Predictor(bundle) as predictor:
        short, long, too_long = predictor([SHORT, LONG, TOO_LONG])
        streamed = list(predictor.stream([SHORT, LONG, TOO_LONG] * 400))
    np.testing.assert_allclose(long.logits, logits_by_hand(LONG, THIRDS), rtol=1e-6)
    assert (long.num_tokens, long.truncated, short.windows) == (35 + 3 * 2, False, ())
    parts = [LONG[window.start : window.stop] for window in long.windows]
    assert " ".join(parts) == LONG.strip()
    assert [max(window.scores, key=window.scores.__getitem__) for window in long.windows] == [
        "positive",
        "positive",
        "negative",
    ]
    assert too_long.truncated  # 4 of 8 windows
    assert len(too_long.windows) == 4
    assert len(streamed) == 1200
    for found, wanted in zip(streamed, [short, long, too_long] * 400, strict=True):
        assert found.scores == pytest.approx(wanted.scores, abs=1e-6)
        assert len(found.windows) == len(wanted.windows)


def test_texts_of_one_window_are_answered_bit_for_bit_as_without_windows(bundle: Path, tmp_path: Path) -> None:
    texts = [" ".join(f"w{number * place % 60}" for place in range(1, 2 + number % 14)) for number in range(200)]
    with Predictor(bundle) as windows, Predictor(save_tiny_bundle(tmp_path / "truncating")) as truncating:
        np.testing.assert_array_equal(windows.logits(texts), truncating.logits(texts))
        right = windows(LONG, truncation="right")
        assert right.logits == truncating(LONG).logits  # asked for, it is the same
        assert right.truncated


def test_an_input_that_would_not_be_read_whole_can_be_refused(bundle: Path) -> None:
    encoder = Encoder.from_bundle(read_bundle(bundle))
    (long, too_long) = encoder.encode_each([LONG, TOO_LONG], "error")
    assert not isinstance(long, ItemError)
    assert len(long.windows) == 3
    assert isinstance(too_long, ItemError)
    assert "102 tokens, more than its 4 windows of 16 hold" in too_long.reason


def test_head_and_tail_are_one_input(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "bundle", long_texts=LongTexts(strategy="head_tail", head_tokens=4))
    with Predictor(bundle) as predictor:
        found = predictor(LONG)
    table, words = token_weights(), ["[CLS]", *["good"] * 4, *["bad"] * 10, "[SEP]"]
    np.testing.assert_allclose(found.logits, table[[VOCABULARY[word] for word in words], 0].mean(axis=0), rtol=1e-6)
    assert (found.truncated, found.windows, found.num_tokens) == (True, (), 16)


def test_files_and_http_answer_as_the_predictor(bundle: Path, tmp_path: Path) -> None:
    texts = [SHORT, LONG, TOO_LONG, " ".join(f"w{place % 60}" for place in range(50))]
    with Predictor(bundle) as predictor:
        expected = predictor(texts)
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(["text", *texts]) + "\n")
    output = tmp_path / "out.csv"
    assert predict(["--bundle", str(bundle), "--file", str(rows), "--output", str(output), "--all_scores"]) == 0
    with output.open(newline="") as file:
        for row, wanted in zip(csv.DictReader(file), expected, strict=True):
            assert int(row["num_windows"]) == max(1, len(wanted.windows))
            assert row["truncated"] == str(wanted.truncated).lower()
            for label in LABELS:
                assert float(row[f"score_{label}"]) == pytest.approx(wanted.scores[label], abs=1e-6)

    with live_server(bundle) as server:
        together = server.post("/v1/classify", {"inputs": texts}).json()
        tei = server.post("/predict", {"inputs": LONG}).json()
        why = server.post("/v1/explain", {"text": LONG}).json()
        assert server.get("/v1/model").json()["long_texts"]["strategy"] == "windows"
        metrics = server.get("/metrics").text
    for result, wanted in zip(together["results"], expected, strict=True):
        assert {each["label"]: each["score"] for each in result["scores"]} == pytest.approx(wanted.scores, abs=1e-6)
        assert result["num_windows"] == max(1, len(wanted.windows))
        assert (result["num_tokens"], result["truncated"]) == (wanted.num_tokens, wanted.truncated)
        for shown, window in zip(result.get("windows", []), wanted.windows, strict=True):
            assert (shown["start"], shown["stop"]) == (window.start, window.stop)
            assert {each["label"]: each["score"] for each in shown["scores"]} == pytest.approx(window.scores, abs=1e-6)
    assert {each["label"]: each["score"] for each in tei} == pytest.approx(expected[1].scores, abs=1e-6)
    assert [(each["start"], each["stop"]) for each in why["windows"]] == [
        (w.start, w.stop) for w in expected[1].windows
    ]
    assert all(token["kept"] for token in why["tokens"])
    assert why["words"][-1]["stop"] == len(LONG.strip())
    # An input counts once, however many windows it has: 4 + 1, and 36 that explain the last.
    counted = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(counted["rawloop_input_tokens_count"]) <= 41
    assert float(counted["rawloop_truncated_inputs_total"]) == 1


def test_predict_says_how_many_windows(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(["--bundle", str(bundle), "--text", LONG, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["num_windows"], len(found["windows"])) == (3, 3)
    assert predict(["--bundle", str(bundle), "--text", LONG]) == 0
    assert "(3 windows)" in capsys.readouterr().out


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_the_contracts(tmp_path: Path, pooling: str) -> None:
    rule = LongTexts(strategy="windows", pooling=pooling)  # type: ignore[arg-type]
    bundle = save_tiny_bundle(
        tmp_path / "bundle", long_texts=rule, problem_type="multi_label_classification", labels=("a", "b", "c")
    )
    with Predictor(bundle) as predictor:
        found = predictor(LONG)
    of_windows = np.array([logits_by_hand(LONG, [third]) for third in THIRDS])
    logits = of_windows.mean(axis=0) if pooling == "mean" else of_windows.max(axis=0)
    expected = scores_from_logits(logits[None], problem_type="multi_label_classification")[0]
    assert list(found.scores.values()) == pytest.approx(expected, abs=1e-6)


def test_a_newer_bundle_with_an_unknown_strategy_is_refused(bundle: Path) -> None:
    file = bundle / "classifier.json"
    file.write_text(file.read_text().replace('"windows"', '"summary"'))
    with pytest.raises(InputError, match=r"long_texts.strategy must be one of truncate, head_tail, windows"):
        read_bundle(bundle, verify=False)


def test_a_server_starts_whose_canary_is_longer_than_a_window(tmp_path: Path) -> None:
    bundle = save_served_bundle(tmp_path / "bundle", long_texts=LongTexts(strategy="windows"), max_length=3)
    with live_server(bundle) as server:
        assert server.post("/v1/classify", {"inputs": ["good good good"]}).json()["results"][0]["num_windows"] == 3


def test_long_texts_with_overlapping_windows_are_explained(tmp_path: Path) -> None:
    rule = LongTexts(strategy="windows", window_stride=2, max_windows=200)
    bundle = save_served_bundle(tmp_path / "bundle", long_texts=rule)
    with live_server(bundle, max_queued_tokens=4_000) as server:
        why = server.post("/v1/explain", {"text": "good " * 150})
        assert why.status_code == 200
        assert why.json()["num_windows"] > 60
        assert why.json()["words"]
