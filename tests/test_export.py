import dataclasses
import io
import json
import shutil
import sys
import warnings
from pathlib import Path

import filelock
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from optimum.onnxruntime import ORTModelForSequenceClassification
from rich.console import Console
from tiny_bundles import VERIFICATION
from tiny_models import ARCHITECTURES
from tiny_runs import LABELS, save_tiny_run, text_of
from transformers import AutoTokenizer, pipeline

from export.__main__ import main
from export.build import Build, Exported, Settings
from export.layers import find_layers
from export.progress import Progress
from export.reference import Reference
from export.rows import read_rows, recombined
from export.verify import GATES, Gate, Verdict, contract_problems, missed_bounds, verify
from serve.contract.bundle import BUNDLE_FILE, Bundle, read_bundle
from serve.contract.classifier import Classifier, read_classifier, write_classifier
from serve.contract.errors import InputError
from serve.encoder import Encoder, TextInput
from serve.session import Session

# Tracing and Optimum warn of their own innards.
pytestmark = [pytest.mark.filterwarnings("ignore")]

FUSED_ATTENTION = {"albert", "bert", "distilbert", "electra", "roberta", "xlm-roberta"}


def export(run: Path, output: Path, **settings: object) -> Exported:
    classifier = read_classifier(run / "model")
    rows = [read_rows(run / "samples" / f"{name}.parquet", name, classifier) for name in ("train", "validation")]
    console = Console(quiet=True)
    return Build(run / "model", classifier, rows[0], rows[1], output, Settings(**settings), console).run()  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a fused graph is kept must not hang on how busy the machine is."""
    monkeypatch.setattr("export.build.SLOWER", 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "bert")


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export(run, tmp_path_factory.mktemp("bundles") / "bert", min_label_agreement=0.9)
    assert exported.left_out == {}
    return read_bundle(exported.folder)


def logits_of(bundle: Bundle, variant: str, inputs: list[str], batch: int) -> np.ndarray:
    encoder, session = Encoder.from_bundle(bundle), Session(bundle.graph(variant))
    encodings = encoder.encode(inputs)
    parts = [session.run(encoder.pad(encodings[start : start + batch])) for start in range(0, len(inputs), batch)]
    return np.concatenate(parts)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_exports_and_is_verified(architecture: str, tmp_path: Path) -> None:
    made = save_tiny_run(tmp_path / "run", architecture, num_rows=24)
    exported = export(made, tmp_path / "bundle", variants=("fp32", "int8"), min_label_agreement=0.8)
    found = exported.variants["fp32"].verification
    assert found.rows == 24
    assert found.label_agreement == 1.0
    assert found.max_abs_logit_difference <= 1e-4
    assert found.paddings == ("right", "left", "mixed")
    fused = exported.variants["fp32"].fused_operators
    assert ("Attention" in fused) == (architecture in FUSED_ATTENTION)
    # int8 is either proved invariant, or left out with its reason.
    if "int8" in exported.variants:
        assert exported.variants["int8"].verification.num_batch_flips == 0
    else:
        assert exported.left_out["int8"]
    assert read_bundle(tmp_path / "bundle").classifier.padding_side == ("left" if architecture == "xlnet" else "right")


def test_pairs_export(tmp_path: Path) -> None:
    made = save_tiny_run(tmp_path / "run", pairs=True, num_rows=24)
    exported = export(made, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].verification.label_agreement == 1.0
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert len(manifest.canary) == 2
    assert "token_type_ids" in manifest.input_names


def test_static_int8_gives_each_text_the_same_bits_in_any_batch(bundle: Bundle) -> None:
    texts = [text_of(number) for number in range(40)]
    alone = logits_of(bundle, "int8", texts, 1)
    for batch in (7, 40):
        assert np.array_equal(logits_of(bundle, "int8", texts, batch), alone)
    assert bundle.manifest.variants["int8"].fused_operators["QAttention"] >= 1


def test_the_bundle_says_what_was_proved(bundle: Bundle) -> None:
    assert set(bundle.manifest.variants) == {"fp32", "int8", "fp16"}
    assert bundle.manifest.default_variants == {"cpu": "int8", "cuda": "fp16"}
    for variant in bundle.manifest.variants.values():
        assert variant.verification.num_batch_flips == 0
        assert len(variant.canary_logits) == 2
    assert bundle.manifest.variants["fp16"].details["verified_on"] == "CPUExecutionProvider"
    canary = logits_of(bundle, "fp32", list(bundle.manifest.canary), 1)[0]
    assert canary == pytest.approx(bundle.manifest.variants["fp32"].canary_logits, abs=1e-6)
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"| {name} | `{v.file}`" in card for name, v in bundle.manifest.variants.items())


def test_the_bundle_loads_in_optimum_with_a_pipeline(bundle: Bundle) -> None:
    model = ORTModelForSequenceClassification.from_pretrained(bundle.folder, file_name="model.onnx")
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(bundle.folder))
    texts = [text_of(number) for number in range(20)]
    expected = [LABELS[best] for best in logits_of(bundle, "fp32", texts, 1).argmax(axis=1)]
    assert [answer["label"] for answer in classify(texts)] == expected


def test_dynamic_int8_is_there_for_those_who_ask(run: Path, tmp_path: Path) -> None:
    exported = export(
        run, tmp_path / "bundle", variants=("fp32", "int8"), quantization="dynamic", min_label_agreement=0.5
    )
    assert "depend on the batch" in exported.variants["int8"].method
    assert "QAttention" in exported.variants["int8"].fused_operators


# What is broken on purpose must be caught and named.


def judged(run: Path, folder: Path, graph: Path, classifier: Classifier | None = None) -> Verdict:
    """Verify a graph with the bundle files in `folder`, as an export would."""
    contract = classifier or read_classifier(run / "model")
    reference = Reference(run / "model", read_classifier(run / "model"))
    rows = read_rows(run / "samples" / "validation.parquet", "validation", read_classifier(run / "model"))
    names = tuple(value.name for value in onnx.load(graph).graph.input)
    encoder = Encoder(folder / "tokenizer.json", contract, input_names=names, pad_token_id=0)
    return verify(Session(graph), encoder, reference, rows, reference.logits(rows), ("a film",), GATES["fp32"])


def test_an_unharmed_graph_passes(run: Path, bundle: Bundle) -> None:
    assert judged(run, bundle.folder, bundle.graph("fp32")).shortfalls == []


@pytest.mark.parametrize(
    ("rows", "differing", "gate", "passes"),
    [
        (100, 1, GATES["fp16"], True),  # one row may always differ
        (100, 2, GATES["fp16"], False),
        (1_000, 5, GATES["fp16"], True),
        (1_000, 6, GATES["fp16"], False),
        (100, 1, GATES["int8"], True),
        (100, 2, GATES["int8"], False),  # both were right before
        (2_000, 10, GATES["int8"], True),
        (2_000, 11, GATES["int8"], False),
        (100, 1, GATES["fp32"], False),  # but in float32
    ],
)
def test_a_gate_is_met_to_the_row(rows: int, differing: int, gate: Gate, passes: bool) -> None:
    record = dataclasses.replace(
        VERIFICATION,
        rows=rows,
        max_abs_logit_difference=0.0,
        label_agreement=1.0 - differing / rows,
        accuracy=0.9 - differing / rows,
        pytorch_accuracy=0.9,
        num_batch_flips=0,
    )
    assert (not missed_bounds(record, gate)) is passes


def test_one_changed_weight_is_caught(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.graph("fp32"))
    tensor = next(t for t in model.graph.initializer if t.name == find_layers(model)[0].weight_name)
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    (shortfall,) = judged(run, bundle.folder, tmp_path / "changed.onnx").shortfalls[:1]
    assert "logit difference" in shortfall


def test_a_wrong_label_order_is_caught(run: Path) -> None:
    turned = read_classifier(run / "model").__class__(
        **{**vars(read_classifier(run / "model")), "labels": tuple(reversed(LABELS))}
    )
    encoder = Encoder(run / "model" / "tokenizer.json", turned, input_names=("input_ids",), pad_token_id=0)
    (problem,) = contract_problems(encoder, Reference(run / "model", turned))
    assert "label order" in problem


def test_a_contract_with_a_label_too_many_is_caught(run: Path, bundle: Bundle) -> None:
    contract = read_classifier(run / "model")
    longer = dataclasses.replace(contract, labels=(*LABELS, "ugly"))
    with pytest.raises(InputError, match=r"label order: classifier\.json has .*ugly.*, the model"):
        judged(run, bundle.folder, bundle.graph("fp32"), longer)


def test_repair_rows_are_made_of_training_rows_and_are_none_of_them() -> None:
    texts: list[TextInput] = [f"a{n} b{n} c{n} d{n}" for n in range(40)]
    rows = recombined(texts, 30, seed=0)
    assert len(rows) == 30
    assert not set(rows) & set(texts)
    for row in rows:
        start, end = str(row).split()[1][1:], str(row).split()[2][1:]
        assert row == f"a{start} b{start} c{end} d{end}"
    assert all(row[0][1:] != row[1][1:] for row in recombined([(f"a{n}", f"b{n}") for n in range(40)], 40, seed=0))


def test_progress_is_lines_in_a_file_and_bars_on_a_terminal() -> None:
    for is_terminal in (False, True):
        stream = io.StringIO()
        with Progress(Console(file=stream, force_terminal=is_terminal, width=80)).count("Counting", 3) as advance:
            advance(3)
        assert "Counting ..." in stream.getvalue()
        assert ("3/3" in stream.getvalue()) == is_terminal


def test_a_tokenizer_of_another_vocabulary_is_caught(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    tokenizer = json.loads((bundle.folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    numbers = [vocabulary[word] for word in words]
    shifted = dict(zip(words, numbers[1:] + numbers[:1], strict=True))
    tokenizer["model"]["vocab"] = vocabulary | shifted
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert any("logit difference" in s for s in judged(run, tmp_path, bundle.graph("fp32")).shortfalls)
    tokenizer["model"]["vocab"] = {word: number + (word in shifted) * 5_000 for word, number in vocabulary.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match=r"gives id \d+, and the model has 74 words: it is another model's tokenizer"):
        judged(run, tmp_path, bundle.graph("fp32"))


def test_a_calibration_on_empty_texts_is_caught_by_the_gate(run: Path, tmp_path: Path) -> None:
    empty = tmp_path / "train.csv"
    empty.write_text("text,label\n" + "".join(f'"",{LABELS[n % 2]}\n' for n in range(40)), encoding="utf-8")
    assert (
        main(
            ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "int8", "--calibration_file", str(empty)]
        )
        == 1
    )
    bundle = read_bundle(tmp_path / "b")
    assert set(bundle.manifest.variants) == {"fp32"}
    assert bundle.default_variant("cpu") == "fp32"


def test_a_flipped_byte_in_any_file_is_caught_on_load(bundle: Bundle, tmp_path: Path) -> None:
    for name in bundle.manifest.files:
        copy = tmp_path / name
        shutil.rmtree(tmp_path)
        shutil.copytree(bundle.folder, tmp_path)
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged"):
            read_bundle(tmp_path)


# The command line.


def test_the_command_writes_a_bundle_and_says_what_is_next(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--run",
        str(run),
        "--output",
        str(tmp_path / "b"),
        "--variants",
        "fp32",
        "--triton",
        str(tmp_path / "t"),
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "python -m serve.predict --bundle" in printed
    assert (tmp_path / "t" / "tiny_fp32" / "1" / "model.onnx").is_file()
    config = (tmp_path / "t" / "tiny_fp32" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "attention_mask" data_type: TYPE_INT64' in config
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [".b.lock"]


def test_a_failed_export_leaves_the_old_bundle_as_it_was(run: Path, tmp_path: Path, bundle: Bundle) -> None:
    shutil.copytree(bundle.folder, tmp_path / "b")
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    contract = read_classifier(broken / "model")
    write_classifier(broken / "model", Classifier(**{**vars(contract), "labels": tuple(reversed(LABELS))}))
    assert main(["--run", str(broken), "--output", str(tmp_path / "b")]) == 2
    assert read_bundle(tmp_path / "b").manifest == bundle.manifest


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--verification_file", "absent.csv"], "absent.csv: no such file"),
        (["--min_label_agreement", "1.5"], "above 0 and at most 1"),
        (["--output", "FULL"], "the folder has other files, and would be replaced"),
        (["--calibration_file", "BAD"], "label 'ugly' is none of the model's: bad, good"),
        (["--calibration_file", "EMPTY"], "no rows"),
        (["--calibration_file", "COLUMN"], "no column text"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    run: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"BAD": "text,label\na,ugly\n", "EMPTY": "text,label\n", "COLUMN": "body,label\na,bad\n"}
    places = {name: tmp_path / f"{name}.csv" for name in contents}
    for name, content in contents.items():
        places[name].write_text(content, encoding="utf-8")
    places["FULL"] = tmp_path / "full"
    places["FULL"].mkdir()
    (places["FULL"] / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert main(["--run", str(run), *(str(places.get(word, word)) for word in extra)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "onnx" / BUNDLE_FILE).exists()


def test_an_absent_run_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(tmp_path)]) == 2
    assert "expected a folder written by training" in capsys.readouterr().err


def test_two_exports_never_write_one_bundle(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(tmp_path / ".b.lock"):
        assert main(["--run", str(run), "--output", str(tmp_path / "b")]) == 2
    assert "another export is writing it" in capsys.readouterr().err


def test_a_fused_graph_that_is_slower_than_its_source_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.build.SLOWER", 1_000.0)
    exported = export(run, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].fused_operators == {}
    assert exported.variants["fp32"].method == "not fused: the fused graph is slower here"


def test_importing_export_is_light() -> None:
    import subprocess

    code = "import sys, export.__main__; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
