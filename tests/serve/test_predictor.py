import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hard_texts import HARD_TEXTS, SURROGATES
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from places import ROOT
from tiny_bundles import VOCABULARY, WORDS, save_tiny_bundle, token_weights

from serve import InputError, ItemError, Prediction, Predictor
from serve.contract.bundle import BUNDLE_FILE
from serve.pipeline import CHUNK_ROWS, CHUNKS_AHEAD
from serve.session import Session

LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Iterator[Predictor]:
    with Predictor(bundle, num_threads=2) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def pair_predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    folder = save_tiny_bundle(tmp_path_factory.mktemp("bundle"), text_pair_column="other")
    with Predictor(folder, num_threads=2) as predictor:
        yield predictor


def expected_logits(first: list[str], second: list[str] | None = None) -> NDArray[np.float32]:
    """Return the mean weights of the tokens of a text or pair, as the graph is written to compute them."""
    tokens = [("[CLS]", 0), *((word, 0) for word in first), ("[SEP]", 0)]
    if second is not None:
        tokens += [*((word, 1) for word in second), ("[SEP]", 1)]
    weights: NDArray[np.float32] = np.stack([token_weights()[VOCABULARY[word], segment] for word, segment in tokens])
    return weights.mean(axis=0)


def distinct_texts(num_texts: int) -> list[str]:
    """Return texts of 1 to 12 words, in no order of length."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(1, 13))) for _ in range(num_texts)]


def test_one_text_is_one_prediction(predictor: Predictor) -> None:
    prediction = predictor("w1 good w2")
    logits = expected_logits(["w1", "good", "w2"])
    scores = np.exp(logits) / np.exp(logits).sum()
    assert prediction.label == "positive"
    assert list(prediction.scores) == list(LABELS)
    np.testing.assert_allclose(list(prediction.scores.values()), scores, rtol=1e-5)
    np.testing.assert_allclose(prediction.logits, logits, rtol=1e-5)
    assert prediction.score == prediction.scores["positive"]
    assert (prediction.num_tokens, prediction.truncated) == (5, False)


def test_a_pair_is_one_prediction_and_its_order_matters(pair_predictor: Predictor) -> None:
    there, back = pair_predictor(("w1 w2", "bad")), pair_predictor(("bad", "w1 w2"))
    np.testing.assert_allclose(there.logits, expected_logits(["w1", "w2"], ["bad"]), rtol=1e-5)
    np.testing.assert_allclose(back.logits, expected_logits(["bad"], ["w1", "w2"]), rtol=1e-5)
    assert pair_predictor([("w1 w2", "bad"), ("bad", "w1 w2")]) == [there, back]


def test_predictions_are_frozen(predictor: Predictor) -> None:
    with pytest.raises(AttributeError):
        predictor("w1").label = "positive"  # type: ignore[misc]


def test_top_k_is_best_first(predictor: Predictor) -> None:
    prediction = predictor("w1 bad")
    assert [label for label, _ in prediction.top_k(2)] == sorted(LABELS, key=lambda label: -prediction.scores[label])[
        :2
    ]
    assert len(prediction.top_k(99)) == 3


def test_scores_are_divided_by_the_temperature_and_logits_are_not(tmp_path: Path, predictor: Predictor) -> None:
    with Predictor(save_tiny_bundle(tmp_path, temperature=2.0), num_threads=1) as warm:
        assert warm("w1 good").logits == predictor("w1 good").logits
        logits = np.array(warm("w1 good").logits) / 2
        np.testing.assert_allclose(list(warm("w1 good").scores.values()), np.exp(logits) / np.exp(logits).sum())


@pytest.mark.parametrize("num_texts", [0, 1, 2, 3, 7, 50, CHUNK_ROWS + 1])
def test_lists_keep_the_order_of_their_texts(predictor: Predictor, num_texts: int) -> None:
    texts = distinct_texts(num_texts)
    predictions = predictor(texts)
    assert len(predictions) == num_texts
    for text, prediction in zip(texts, predictions, strict=True):
        np.testing.assert_allclose(prediction.logits, expected_logits(text.split()), rtol=1e-5, atol=1e-6)


def test_logits_are_one_array(predictor: Predictor) -> None:
    texts = distinct_texts(9)
    logits = predictor.logits(texts)
    assert (logits.shape, logits.dtype) == ((9, 3), np.float32)
    assert [tuple(row) for row in logits.tolist()] == [prediction.logits for prediction in predictor(texts)]
    assert predictor.logits([]).shape == (0, 3)


@settings(max_examples=40)
@given(texts=st.lists(st.sampled_from([*HARD_TEXTS, *distinct_texts(10)]), max_size=20))
def test_a_text_has_the_same_answer_alone_as_among_others(predictor: Predictor, texts: list[str]) -> None:
    for text, prediction in zip(texts, predictor(texts), strict=True):
        alone = predictor(text)
        assert prediction.label == alone.label
        np.testing.assert_allclose(prediction.logits, alone.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", [*HARD_TEXTS, "good " * 250_000, "x" * 1_000_000])
def test_hard_texts_are_answered_like_others(predictor: Predictor, text: str) -> None:
    before, prediction, after = predictor(["w1 good", text, "w1 bad"])
    assert (before.label, after.label) == ("positive", "negative")
    assert np.isclose(sum(prediction.scores.values()), 1)
    assert prediction.num_tokens <= 16
    assert prediction.truncated == (len(text.split()) > 14)


@pytest.mark.parametrize(("text", "read_as"), SURROGATES)
def test_surrogates_are_read_as_what_they_stand_for(predictor: Predictor, text: str, read_as: str) -> None:
    assert predictor(text) == predictor(read_as)


def test_a_pair_for_a_model_of_single_texts_is_refused_with_the_fix(predictor: Predictor) -> None:
    expected = "expected one text, found a pair; this model takes single texts: pass several as a list"
    with pytest.raises(ItemError, match=f"^input 0: {expected}$"):
        predictor(("w1", "w2"))


@pytest.mark.parametrize("item", [None, 5, 1.5, b"w1", ("w1",), ("w1", None), ["w1"], {"text": "w1"}])
def test_what_is_no_text_is_an_error_that_names_it(predictor: Predictor, item: Any) -> None:
    with pytest.raises(ItemError, match="input 2: expected text, found"):
        predictor(["w1", "w2", item, "w3"])


def test_a_list_with_a_bad_item_is_refused_before_the_model_runs(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "run", lambda self, inputs: pytest.fail("the model ran"))
    with pytest.raises(ItemError, match="input 3"):
        predictor(["w1", "w2", "w3", None])  # type: ignore[list-item]


def test_errors_can_be_sent_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(ItemError(4, "too long")))
    assert (error.index, str(error)) == (4, "input 4: too long")


def test_an_error_of_one_item_leaves_the_others_of_a_stream(predictor: Predictor) -> None:
    texts: list[Any] = distinct_texts(CHUNK_ROWS + 20)
    bad = (3, CHUNK_ROWS + 5)
    for index in bad:
        texts[index] = None
    outcomes = list(predictor.stream(texts, errors="return"))
    refused = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, ItemError)}
    assert tuple(refused) == bad
    assert [error.index for error in refused.values()] == list(bad)
    for text, outcome in zip(texts, outcomes, strict=True):
        if isinstance(outcome, Prediction):
            np.testing.assert_allclose(outcome.logits, expected_logits(text.split()), rtol=1e-5, atol=1e-6)


def test_a_stream_that_raises_first_gives_what_came_before(predictor: Predictor) -> None:
    stream = predictor.stream(["w1", "w2", None])  # type: ignore[list-item]
    assert [next(stream).num_tokens, next(stream).num_tokens] == [3, 3]
    with pytest.raises(ItemError, match="input 2"):
        next(stream)


def test_a_stream_reads_only_a_little_ahead(predictor: Predictor) -> None:
    num_read = 0

    def texts() -> Iterator[str]:
        nonlocal num_read
        while True:
            num_read += 1
            yield "w1"

    stream = predictor.stream(texts())
    for _ in range(3 * CHUNK_ROWS):
        next(stream)
    assert num_read <= (3 + 1 + CHUNKS_AHEAD) * CHUNK_ROWS
    stream.close()  # type: ignore[attr-defined]
    assert predictor("w1 good").label == "positive"


def test_a_text_is_no_stream_of_its_characters(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="expected texts, found one"):
        next(predictor.stream("w1 good"))
    (found,) = predictor.stream(["w1 good"])
    assert found == predictor("w1 good"), "both ways that the message names"


def test_an_error_of_the_source_reaches_who_reads_the_stream(predictor: Predictor) -> None:
    def texts() -> Iterator[str]:
        yield "w1"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(predictor.stream(texts()))


@pytest.mark.parametrize(("truncation", "label"), [("left", "positive"), ("right", "negative"), (None, "negative")])
def test_truncation_keeps_the_side_that_is_not_cut(predictor: Predictor, truncation: Any, label: str) -> None:
    prediction = predictor("bad " * 8 + "w1 " * 20 + "good " * 8, truncation=truncation)
    assert (prediction.label, prediction.truncated, prediction.num_tokens) == (label, True, 16)


def test_truncation_may_be_refused(predictor: Predictor) -> None:
    with pytest.raises(ItemError, match="input 1: 32 tokens, more than the 16 the model takes"):
        predictor(["w1", "w1 " * 30], truncation="error")


def test_a_shorter_length_may_be_asked_for(bundle: Path) -> None:
    with Predictor(bundle, max_length=4, num_threads=1) as predictor:
        assert predictor("w1 w2 w3").num_tokens == 4


def test_logits_that_are_no_numbers_are_no_prediction(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Session.run

    def broken(self: Session, inputs: Any) -> NDArray[np.float32]:
        logits = run(self, inputs)
        logits[(inputs["input_ids"] == VOCABULARY["fine"]).any(axis=1)] = np.nan
        return logits

    monkeypatch.setattr(Session, "run", broken)
    outcomes = list(predictor.stream(["good", "fine", "bad"], errors="return"))
    assert [type(outcome) for outcome in outcomes] == [Prediction, ItemError, Prediction]
    assert "no finite numbers" in str(outcomes[1])


def test_a_failing_model_is_an_error_and_not_an_endless_wait(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Session, inputs: Any) -> NDArray[np.float32]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Session, "run", broken)
    for inputs in ("w1", distinct_texts(20), distinct_texts(CHUNK_ROWS + 1)):
        with pytest.raises(RuntimeError, match="out of memory"):
            predictor(inputs)  # type: ignore[call-overload]
    monkeypatch.undo()
    assert predictor("w1 good").label == "positive"


def test_threads_may_ask_at_once(predictor: Predictor) -> None:
    texts = distinct_texts(64)
    expected = [prediction.label for prediction in predictor(texts)]

    def ask(number: int) -> bool:
        if number % 3 == 0:
            return predictor(texts[number % 64]).label == expected[number % 64]
        if number % 3 == 1:
            return [prediction.label for prediction in predictor(texts)] == expected
        return [prediction.label for prediction in predictor.stream(texts)] == expected

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(60)))


def test_closing_ends_it_and_twice_is_fine(bundle: Path) -> None:
    predictor = Predictor(bundle, num_threads=2)
    predictor("w1")
    predictor.close()
    predictor.close()
    with pytest.raises(RuntimeError):
        predictor("w1")
    with pytest.raises(RuntimeError):
        predictor(distinct_texts(20))


def test_the_provider_is_reported(predictor: Predictor) -> None:
    assert predictor.provider == "CPUExecutionProvider"
    assert predictor.variant == "fp32"
    assert predictor.labels == LABELS


def test_asked_for_cuda_without_it_is_an_error(bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine's ONNX Runtime has CUDA")
    with pytest.raises(InputError, match="device cuda: the installed ONNX Runtime cannot use it"):
        Predictor(bundle, device="cuda")


def test_a_variant_that_is_not_there_is_an_error(bundle: Path) -> None:
    with pytest.raises(InputError, match="no variant 'int8'; it has fp32"):
        Predictor(bundle, variant="int8")


def test_damage_is_found_when_loading_unless_verification_is_off(tmp_path: Path) -> None:
    folder = save_tiny_bundle(tmp_path / "bundle")
    config = folder / "classifier.json"
    config.write_text(config.read_text().replace('"tiny"', '"tiNy"'))
    with pytest.raises(InputError, match="wrong SHA-256"):
        Predictor(folder)
    with Predictor(folder, verify=False, num_threads=1) as predictor:
        assert predictor("w1 good").label == "positive"


def test_a_folder_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{BUNDLE_FILE}: no such file"):
        Predictor(tmp_path)


LIGHT = """
import json, sys
from serve import Predictor
with Predictor(sys.argv[1]) as predictor:
    label = predictor("w1 good").label
print(json.dumps([label, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_prediction_loads_no_heavy_library(bundle: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIGHT, str(bundle)], capture_output=True, text=True, check=True
    ).stdout
    label, modules = json.loads(output)
    assert label == "positive"
    heavy = {"torch", "transformers", "datasets", "optimum", "onnx", "pyarrow", "pandas", "scipy", "rich", "fastapi"}
    assert heavy.isdisjoint(modules)


def test_importing_serve_loads_nothing_yet() -> None:
    code = "import sys, serve; print('numpy' in sys.modules, 'tokenizers' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "False"]


def test_the_example_without_arguments_prints_its_usage() -> None:
    example = ROOT / "examples" / "embed_in_service.py"
    ended = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: embed_in_service.py")


def test_the_example_routes_messages(bundle: Path) -> None:
    example = ROOT / "examples" / "embed_in_service.py"
    output = subprocess.run(
        [sys.executable, str(example), str(bundle)],
        input="good good good good good\nw1 w2 w3\n" + "good " * 50 + "\n",
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert [line.split("\t")[0] for line in output.stdout.splitlines()] == ["positive", "a person", "a person"]
    assert "CPUExecutionProvider" in output.stderr


FORKED = """
import os, sys, threading
from serve import InputError, Predictor

predictor = Predictor(sys.argv[1], num_threads=2)
predictor(["good"] * 40)  # starts its threads
if (child := os.fork()) == 0:
    threading.Timer(30, os._exit, [3]).start()
    for ask in (lambda: predictor("good"), lambda: predictor(["good"] * 40), lambda: list(predictor.stream(["good"]))):
        try:
            ask()
        except InputError as error:
            assert "create it in each child" in str(error), error
        else:
            os._exit(1)
    predictor.close()
    with Predictor(sys.argv[1], num_threads=2) as own:  # the way out
        own(["good"] * 40)
    os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_refused_with_the_way_out_instead_of_waiting_forever(bundle: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(bundle)]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == 0


def test_a_pickled_predictor_loads_where_it_arrives(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.parent)
    with Predictor(bundle.name, num_threads=1, max_length=6, verify=False) as predictor:
        text = " ".join(WORDS[:10])
        expected = predictor(text)
        packed = pickle.dumps(predictor)
        monkeypatch.chdir("/")
        assert len(packed) < 1_000
        with pickle.loads(packed) as arrived:
            assert arrived(text) == expected
            assert arrived.pipeline.encoder.max_length == 6
            assert arrived.pipeline.sessions.num_threads == 1


def test_a_predictor_that_arrives_without_its_bundle_says_so(bundle: Path, tmp_path: Path) -> None:
    with Predictor(shutil.copytree(bundle, tmp_path / "bundle")) as predictor:
        packed = pickle.dumps(predictor)
    shutil.rmtree(tmp_path / "bundle")
    with pytest.raises(InputError, match=str(tmp_path / "bundle")):
        pickle.loads(packed)


@pytest.mark.parametrize("truncation", [True, False, "Left", 512])
def test_an_unknown_truncation_is_refused_in_one_sentence(predictor: Predictor, truncation: Any) -> None:
    for inputs in ("good", ["good"], ["good"] * 600):
        with pytest.raises(InputError, match=rf"truncation {truncation!r}: expected 'right', 'left' or 'error'; leave"):
            predictor(inputs, truncation=truncation)


def test_onnx_runtime_loads_with_its_telemetry_switched_off(bundle: Path, tmp_path: Path) -> None:
    """Otherwise it leaves a device id in the home folder, and looks up a host for its events."""
    code = "import sys; from serve import Predictor; print(Predictor(sys.argv[1])('good').label)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, str(bundle)], cwd=ROOT, env=environment, check=True, timeout=120)
    assert list(tmp_path.iterdir()) == []
