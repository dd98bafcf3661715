"""Long texts from training to the bundle: learned, evaluated, exported and served alike."""

import csv
from pathlib import Path

import numpy as np
import pytest
from exports import export_tiny_run
from tiny_models import ARCHITECTURES, WORDS, save_tiny_model, tiny_tokenizer

from serve.contract.bundle import read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.long_texts import LongTexts
from serve.encoder import Encoder
from serve.encoding import windows_of
from serve.predictor import Predictor
from train_loop.evaluation import main as evaluate
from train_loop.main import main as train
from train_loop.rows.tokens import encode

STRATEGIES = {
    "windows": ["--long_texts=windows", "--window_stride=10"],
    "several labels": ["--long_texts=windows", "--window_pooling=auto", "--label_separator=;"],
    "head_tail": ["--long_texts=head_tail", "--head_tokens=0"],
}
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("pictureless")]


@pytest.fixture(scope="module")
def pictureless() -> "pytest.Generator[None]":
    """Leave the pictures of finished runs out, which take more than half of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_loop.findings.results.draw_all", lambda *_: [])
        yield


@pytest.fixture(scope="module", params=list(STRATEGIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pictureless: None) -> Path:
    """Return a finished run on texts of 1 to 60 words, the last of which decides."""
    folder, several = tmp_path_factory.mktemp("runs"), request.param == "several labels"
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for number in range(400):
            words = [WORDS[4 + number * place % 20] for place in range(number * 17 % 60)]
            label = "a;b" if several and number % 5 == 0 else "ab"[number % 2]
            table.writerow([" ".join([*words, WORDS[number % 2]]), label])
    arguments = [
        f"--model_name={save_tiny_model(folder / 'tiny')}",
        f"--train_file={folder / 'rows.csv'}",
        f"--output_dir={folder}",
        "--run_name=run",
        "--learning_rate=3e-3",
        "--mixed_precision=no",
        "--max_length=16",
        "--epochs=4",
        *STRATEGIES[request.param],
    ]
    assert train(arguments) == 0
    return folder / "run"


def test_scores_of_training_are_those_of_the_bundle_and_int8_does_not_depend_on_the_batch(
    run: Path, tmp_path: Path
) -> None:
    bundle_folder = tmp_path / "onnx"
    exported = export_tiny_run(run, bundle_folder, variants=("fp32", "int8"))
    assert not exported.left_out
    bundle, classifier = read_bundle(bundle_folder), read_classifier(run / "model")
    assert bundle.classifier.long_texts == classifier.long_texts
    for variant in bundle.manifest.variants.values():
        assert variant.verification.num_batch_flips == 0
    with (run / "results" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with Predictor(bundle_folder, variant="fp32") as predictor:
        predictions = predictor([row["text"] for row in rows])
    most = max(len(prediction.windows) for prediction in predictions)
    assert most > 3 if classifier.long_texts.strategy == "windows" else most == 0
    for row, prediction in zip(rows, predictions, strict=True):
        for label in classifier.labels:
            assert float(row[f"probability_{label}"]) == pytest.approx(prediction.scores[label], abs=2e-6)
    right = [row["true"] == prediction.label for row, prediction in zip(rows, predictions, strict=True)]
    if classifier.problem_type == "single_label_classification" and classifier.long_texts.strategy == "head_tail":
        assert np.mean(right) > 0.9  # the last word is read


def test_evaluation_reads_long_texts_as_training_did(run: Path, tmp_path: Path) -> None:
    before = (run / "results" / "predictions.csv").read_text()
    assert evaluate(["--run", str(run), "--split", "test", "--output", str(tmp_path / "again")]) == 0
    again = (tmp_path / "again" / "predictions.csv").read_text()
    assert set(again.splitlines()) <= set(before.splitlines())
    rows, model = run.parent / "rows.csv", run / "model"  # the folder as one that was trained elsewhere
    is_single = read_classifier(model).problem_type == "single_label_classification"
    flags = ["--model", str(model), "--file", str(rows), *([] if is_single else ["--label_separator=;"])]
    assert evaluate([*flags, "--output", str(tmp_path / "elsewhere")]) == 0
    with (tmp_path / "elsewhere" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        found = {row["text"]: row["probability_a"] for row in csv.DictReader(file)}
    for row in csv.DictReader(before.splitlines()):
        assert float(found[row["text"]]) == pytest.approx(float(row["probability_a"]), abs=2e-6)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("pairs", [False, True])
def test_training_export_and_serving_cut_the_same_windows(architecture: str, pairs: bool, tmp_path: Path) -> None:
    tokenizer, rule = tiny_tokenizer(architecture), LongTexts(strategy="windows", window_stride=7, max_windows=5)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    classifier = Classifier(
        name="tiny",
        labels=("a", "b"),
        text_column="text",
        text_pair_column="pair" if pairs else None,
        max_length=16,
        padding_side=tokenizer.padding_side,
        long_texts=rule,
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    encoder = Encoder(tmp_path / "tokenizer.json", classifier, input_names=names, pad_token_id=0)
    texts = [" ".join(WORDS[number * place % 60] for place in range(1 + number * 3)) for number in range(40)]
    columns = [texts, texts[::-1]] if pairs else [texts]
    trained = encode(tokenizer, columns, 16, rule)
    served = encoder.encode(list(zip(*columns, strict=True)) if pairs else texts)
    windows = windows_of(served)
    assert [len(each.windows) for each in served] == trained.num_windows
    assert max(trained.num_windows) == 5
    assert [each.truncated for each in served] == trained.truncated
    assert [window.ids.tolist() for window in windows] == trained.input_ids
    assert [window.type_ids.tolist() for window in windows if window.type_ids is not None] == trained.token_type_ids
    assert all(len(ids) <= 16 and ids.count(2) == 1 and ids.count(3) == 1 + pairs for ids in trained.input_ids)
