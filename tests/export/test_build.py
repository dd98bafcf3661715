import dataclasses
import errno
import io
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

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
from export.int8.layers import find_layers
from export.int8.repair import Repair
from export.progress import Progress
from export.reference import Reference
from export.rows import read_rows, recombined
from export.to_onnx import export_graph
from export.triton import write_triton
from export.verify import GATES, Gate, Judge, Verdict, contract_problems, missed_bounds
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


@pytest.fixture(autouse=True, scope="module")
def any_speed() -> Iterator[None]:
    """Whether a fused graph is kept must not hang on how busy the machine is."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("export.build.SLOWER", 0.0)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "bert")


@pytest.fixture(scope="module")
def bundle(run: Path, any_speed: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
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
    assert found.shape_differences.keys() == {"right", "left", "mixed", "1x1", "1xlongest"}
    fused = exported.variants["fp32"].fused_operators
    assert ("Attention" in fused) == (architecture in FUSED_ATTENTION)
    for variant in exported.variants.values():  # the last layer works for the head's token alone
        nodes = onnx.load(exported.folder / variant.file).graph.node
        assert any(node.name.endswith("/early_gather") for node in nodes)
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
    return Judge(encoder, reference, rows, reference.logits(rows), ("a film",)).verify(Session(graph), GATES["fp32"])


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
        (49, 1, GATES["int8"], False),  # and on too few rows
        (49, 0, GATES["int8"], True),
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


class Spoiled:
    """A session whose logits are spoiled where some rule says so."""

    def __init__(self, graph: Path, spoil: Callable[[dict[str, np.ndarray]], np.ndarray], factor: float) -> None:
        self._session, self._spoil, self._factor = Session(graph), spoil, factor

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        logits = self._session.run(inputs)
        return np.where(self._spoil(inputs)[:, None], self._factor * logits, logits)


def starts_with_padding(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return inputs["attention_mask"][:, 0] == 0


def is_alone_and_long(inputs: dict[str, np.ndarray]) -> np.ndarray:
    ids = inputs["input_ids"]
    return np.full(len(ids), len(ids) == 1 and ids.shape[1] > 30)


@pytest.mark.parametrize("gate", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("spoil", "factor", "message"),
    [
        (starts_with_padding, -7.0, "padding left"),
        (starts_with_padding, np.nan, "NaN or infinite logits on mixed"),
        (is_alone_and_long, 50.0, "shape 1xlongest"),
    ],
)
def test_a_graph_that_is_wrong_on_another_padding_or_shape_is_caught(
    run: Path, bundle: Bundle, gate: str, spoil: Callable[..., np.ndarray], factor: float, message: str
) -> None:
    classifier = read_classifier(run / "model")
    rows = read_rows(run / "samples" / "validation.parquet", "validation", classifier)
    reference = Reference(run / "model", classifier)
    judge = Judge(Encoder.from_bundle(bundle), reference, rows, reference.logits(rows), ("a film",))
    assert judge.verify(Session(bundle.graph("fp32")), GATES[gate]).shortfalls == []
    found = judge.verify(Spoiled(bundle.graph("fp32"), spoil, factor), GATES[gate])  # type: ignore[arg-type]
    assert any(message in shortfall for shortfall in found.shortfalls)


def test_a_label_that_changes_in_two_kinds_of_batches_is_one_flip(run: Path, bundle: Bundle) -> None:
    classifier = read_classifier(run / "model")
    rows = read_rows(run / "samples" / "validation.parquet", "validation", classifier)
    reference = Reference(run / "model", classifier)
    judge = Judge(Encoder.from_bundle(bundle), reference, rows, reference.logits(rows), ("a film",))
    in_company = Spoiled(
        bundle.graph("fp32"), lambda inputs: np.full(len(found := inputs["input_ids"]), len(found) > 1), -1
    )
    verdict = judge.verify(in_company, GATES["int8"])  # type: ignore[arg-type]
    assert verdict.record.num_batch_flips == len(rows)
    assert f"{len(rows)} labels depend on the batch" in verdict.shortfalls


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


def test_repair_rows_of_texts_without_spaces_are_none_of_them_either() -> None:
    texts: list[TextInput] = ["这部电影很好", "我不喜欢这个故事", "演员非常出色", "单词"]
    assert not set(recombined(texts, 4, seed=0)) & set(texts)


def test_each_attempt_at_int8_keeps_more_layers_in_float32() -> None:
    layers = [SimpleNamespace(name=f"layer{number}") for number in range(20)]
    runs = []

    class Measured(Repair):
        def _measure(self, keep: Sequence[str]) -> tuple[float, float]:
            runs.append(tuple(keep))
            return 1.0 - 0.01 * (20 - len(keep)), 0.01  # each layer in float32 brings one percent

    def attempts(min_agreement: float) -> list[int]:
        return [len(found.kept) for found in Measured(None, layers, {}, np.zeros((1, 2)), None).attempts(min_agreement)]  # type: ignore[arg-type]

    assert attempts(0.8) == [0, 3, 6, 10]
    assert attempts(0.82) == [2, 3, 6, 10]
    assert attempts(1.0) == [3, 6, 10]
    assert runs.count(("layer0", "layer1", "layer2")) == 3  # no graph is measured twice


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
        (["--calibration_file", "BAD"], "line 2: label 'ugly' is not one of the model's: bad, good"),
        (["--calibration_file", "EMPTY"], "no rows"),
        (["--calibration_file", "COLUMN"], "line 1: no column 'text'; it has 'body', 'label'"),
        (["--calibration_file", "LATER"], "line 2: no column 'label'"),
        (["--calibration_file", "LIST"], "line 1: expected a JSON object, found list"),
        (["--calibration_file", "ODD"], "line 1: label ['bad'] is not one of the model's"),
        (["--output", "BAD"], "this is a file; name a folder"),
    ],
)
def test_what_cannot_be_exported_is_one_message(
    run: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"BAD": "text,label\na,ugly\n", "EMPTY": "text,label\n", "COLUMN": "body,label\na,bad\n"}
    places = {name: tmp_path / f"{name}.csv" for name in contents}
    lines = {
        "LATER": '{"text": "a", "label": "bad"}\n{"text": "b"}\n',
        "LIST": "[1, 2]\n",
        "ODD": '{"text": "a", "label": ["bad"]}\n',
    }
    places |= {name: tmp_path / f"{name}.jsonl" for name in lines}
    contents |= lines
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


def test_a_run_that_is_not_finished_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert main(["--run", str(tmp_path)]) == 2
    assert "not finished; go on with train_loop/main.py --resume" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_costs_nothing(
    run: Path, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    shutil.copytree(bundle.folder, tmp_path / "b")
    monkeypatch.setattr("export.build.to_half", fill)
    assert main(["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp16"]) == 2
    assert re.search(r"error: .*fp16.onnx: No space left on device; the bundle .* as it was", capsys.readouterr().err)
    assert read_bundle(tmp_path / "b").manifest == bundle.manifest


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


def test_a_fused_graph_that_does_not_run_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(graph: Path, output: Path) -> Path:
        output.write_bytes(b"no graph")
        return output

    monkeypatch.setattr("export.build.without_skip_layer_norms", break_it)
    exported = export(run, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].method.startswith("not fused: the fused graph does not run (")
    assert exported.variants["fp32"].fused_operators == {}


@pytest.mark.parametrize(("quantization", "broken"), [("dynamic", "quantize_dynamically"), ("static", "StaticInt8")])
def test_a_quantizer_that_fails_costs_int8_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, broken: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(f"export.build.{broken}", fail)
    exported = export(run, tmp_path / "bundle", variants=("fp32", "int8"), quantization=quantization)
    assert exported.left_out == {"int8": "AssertionError: AssertionError"}
    assert set(read_bundle(tmp_path / "bundle").manifest.variants) == {"fp32"}


def test_a_graph_whose_weights_stand_beside_it_is_shipped_as_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_with_external_weights(model_folder: Path, output: Path) -> Path:
        graph = export_graph(model_folder, output)
        onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)
        return graph

    monkeypatch.setattr("export.build.export_graph", export_with_external_weights)
    exported = export(run, tmp_path / "bundle")
    assert exported.variants["fp32"].external_files == ("weights.bin",)
    assert exported.variants["fp32"].method == "over 2 GB: exported as it is"
    assert exported.left_out == dict.fromkeys(("int8", "fp16"), "over 2 GB: not supported")
    assert logits_of(read_bundle(tmp_path / "bundle"), "fp32", ["a film"], 1).shape == (1, 2)


def test_rows_that_were_calibrated_on_prove_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = str(run / "samples" / "train.parquet")
    assert main(["--run", str(run), "--output", str(tmp_path / "b"), "--verification_file", seen]) == 2
    assert "train.parquet: every row is one of the calibration rows (the train split) too" in capsys.readouterr().err


def test_a_file_of_rows_goes_by_its_name(run: Path, tmp_path: Path) -> None:
    rows = tmp_path / "new.jsonl"
    # Ends of lines of other kinds belong to the text.
    lines = [{"text": f"{text_of(number)}\u2028{number}\x85", "label": LABELS[number % 2]} for number in range(60)]
    rows.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    arguments = ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp32", "--verification_file"]
    assert main([*arguments, str(rows)]) == 0
    record = read_bundle(tmp_path / "b").manifest.variants["fp32"].verification
    assert (record.split, record.rows) == ("new.jsonl", 60)
    assert "60 rows of new.jsonl" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_a_triton_repository_holds_no_variant_that_the_bundle_has_not(bundle: Bundle, tmp_path: Path) -> None:
    variants = bundle.manifest.variants
    write_triton(tmp_path, bundle.folder, bundle.classifier, variants)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny_fp32", "tiny_int8", "tiny_fp16"}
    write_triton(tmp_path, bundle.folder, bundle.classifier, {"fp32": variants["fp32"]})
    assert {path.name for path in tmp_path.iterdir()} == {"tiny_fp32"}


def test_importing_export_is_light() -> None:
    import subprocess

    code = "import sys, export.__main__; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
