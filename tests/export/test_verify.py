"""A graph that is broken on purpose is caught, and the shortfall named."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from tiny_bundles import VERIFICATION
from tiny_runs import LABELS

from export.__main__ import main
from export.int8.layers import find_layers
from export.reference import Reference
from export.rows import read_rows
from export.verify import GATES, Gate, Judge, Verdict, contract_problems, missed_bounds
from serve.contract.bundle import Bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.encoder import Encoder
from serve.session import Session

SINGLE = GATES["single_label_classification"]

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def judged(run: Path, folder: Path, graph: Path, classifier: Classifier | None = None) -> Verdict:
    """Verify a graph with the bundle files in `folder`, as an export would."""
    contract = classifier or read_classifier(run / "model")
    reference = Reference(run / "model", read_classifier(run / "model"))
    rows = read_rows(run / "samples" / "validation.parquet", "validation", read_classifier(run / "model"))
    names = tuple(value.name for value in onnx.load(graph).graph.input)
    encoder = Encoder(folder / "tokenizer.json", contract, input_names=names, pad_token_id=0)
    return Judge(encoder, reference, rows, reference.logits(rows), ("a film",)).verify(Session(graph), SINGLE["fp32"])


def test_an_intact_graph_passes(run: Path, bundle: Bundle) -> None:
    assert judged(run, bundle.folder, bundle.graph("fp32")).shortfalls == []


@pytest.mark.parametrize(
    ("rows", "differing", "gate", "passes"),
    [
        (100, 1, SINGLE["fp16"], True),  # one row may always differ
        (100, 2, SINGLE["fp16"], False),
        (1_000, 5, SINGLE["fp16"], True),
        (1_000, 6, SINGLE["fp16"], False),
        (100, 1, SINGLE["int8"], True),
        (100, 2, SINGLE["int8"], False),  # both were right before
        (2_000, 10, SINGLE["int8"], True),
        (2_000, 11, SINGLE["int8"], False),
        (100, 1, SINGLE["fp32"], False),  # except in float32
        (49, 1, SINGLE["int8"], False),  # and on too few rows
        (49, 0, SINGLE["int8"], True),
    ],
)
def test_a_gate_is_exact_to_the_row(rows: int, differing: int, gate: Gate, passes: bool) -> None:
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
    assert judge.verify(Session(bundle.graph("fp32")), SINGLE[gate]).shortfalls == []
    found = judge.verify(Spoiled(bundle.graph("fp32"), spoil, factor), SINGLE[gate])  # type: ignore[arg-type]
    assert any(message in shortfall for shortfall in found.shortfalls)


class Misread:
    """A session whose graph reads the attention mask in another way."""

    def __init__(self, graph: Path, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self._session, self._read = Session(graph), read

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(inputs | {"attention_mask": self._read(inputs["attention_mask"])})


def as_length(mask: np.ndarray) -> np.ndarray:
    return (np.arange(mask.shape[1]) < mask.sum(axis=1, keepdims=True)).astype(np.int64)


@pytest.mark.parametrize("gate", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("read", [np.ones_like, as_length])
def test_a_graph_that_ignores_padding_or_where_it_is_is_caught(
    run: Path, bundle: Bundle, gate: str, read: Callable[[np.ndarray], np.ndarray]
) -> None:
    classifier = read_classifier(run / "model")
    rows = read_rows(run / "samples" / "validation.parquet", "validation", classifier)
    reference = Reference(run / "model", classifier)
    judge = Judge(Encoder.from_bundle(bundle), reference, rows, reference.logits(rows), ("a film",))
    found = judge.verify(Misread(bundle.graph("fp32"), read), SINGLE[gate])  # type: ignore[arg-type]
    assert any("padding left" in shortfall for shortfall in found.shortfalls)


def test_weights_of_other_names_are_not_taken_for_the_truth(run: Path, tmp_path: Path) -> None:
    """transformers would draw random ones in their place."""
    folder = shutil.copytree(run / "model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    renamed = {"module." + name: tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model: its weights are not those of a finished run \(.*\); restore them"):
        Reference(folder, read_classifier(folder))


def test_a_label_that_changes_in_two_kinds_of_batches_is_one_flip(run: Path, bundle: Bundle) -> None:
    classifier = read_classifier(run / "model")
    rows = read_rows(run / "samples" / "validation.parquet", "validation", classifier)
    reference = Reference(run / "model", classifier)
    judge = Judge(Encoder.from_bundle(bundle), reference, rows, reference.logits(rows), ("a film",))
    in_company = Spoiled(
        bundle.graph("fp32"), lambda inputs: np.full(len(found := inputs["input_ids"]), len(found) > 1), -1
    )
    verdict = judge.verify(in_company, SINGLE["int8"])  # type: ignore[arg-type]
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


def test_a_contract_with_an_extra_label_is_caught(run: Path, bundle: Bundle) -> None:
    contract = read_classifier(run / "model")
    longer = dataclasses.replace(contract, labels=(*LABELS, "ugly"))
    with pytest.raises(InputError, match=r"label order: classifier\.json has .*ugly.*, the model"):
        judged(run, bundle.folder, bundle.graph("fp32"), longer)


def test_a_tokenizer_of_another_vocabulary_is_caught(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    tokenizer = json.loads((bundle.folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    words = [word for word in vocabulary if not word.startswith("[")]
    numbers = [vocabulary[word] for word in words]
    shifted = dict(zip(words, numbers[1:] + numbers[:1], strict=True))
    tokenizer["model"]["vocab"] = vocabulary | shifted
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer: 60 of 60 rows of validation get other ids from transformers \d"):
        judged(run, tmp_path, bundle.graph("fp32"))
    tokenizer["model"]["vocab"] = {word: number + (word in shifted) * 5_000 for word, number in vocabulary.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(InputError, match=r"produces id \d+, but the model has 74 words: it belongs to another model"):
        judged(run, tmp_path, bundle.graph("fp32"))


def test_a_transformers_that_tokenizes_otherwise_is_caught_and_the_way_out_works(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes of tokenizers make parts anew: transformers 4 BERT's letter case, 5 more of more classes."""
    copy = shutil.copytree(run, tmp_path / "run")
    tokenizer_json, config_json = copy / "model" / "tokenizer.json", copy / "model" / "tokenizer_config.json"
    tokenizer = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    on = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    tokenizer["normalizer"] = {"type": "BertNormalizer", **on}
    tokenizer_json.write_text(json.dumps(tokenizer), encoding="utf-8")
    config = json.loads(config_json.read_text(encoding="utf-8"))
    config_json.write_text(
        json.dumps({**config, "tokenizer_class": "BertTokenizerFast", "do_lower_case": False}), encoding="utf-8"
    )
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "w1,bad\nthe GOOD food,good\nvery fine,good\n" * 8, encoding="utf-8")
    arguments = ["--run", str(copy), "--rows", str(rows), "--variants", "fp32"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "tokenizer: 8 of 24 rows of rows.csv get other ids from transformers" in said
    assert "such as 'the GOOD food': from token 3 on" in said
    assert f"Export with the transformers that trained the model ({version('transformers')}), or" in said
    assert 'tokenizer_config.json, set "tokenizer_class" to "PreTrainedTokenizerFast" and "padding_side" to "r' in said
    assert not (copy / "onnx").exists()
    ways_out = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
    config_json.write_text(json.dumps({**config, **ways_out}), encoding="utf-8")
    assert main(arguments) == 0


def test_a_tokenizer_saved_by_transformers_5_is_read_by_4(run: Path, tmp_path: Path) -> None:
    """5 saves the class `TokenizersBackend`, which 4 does not know."""
    folder = shutil.copytree(run / "model", tmp_path / "model")
    config_json = folder / "tokenizer_config.json"
    config = json.loads(config_json.read_text(encoding="utf-8"))
    config_json.write_text(json.dumps({**config, "tokenizer_class": "TokenizersBackend"}), encoding="utf-8")
    reference = Reference(folder, read_classifier(folder))
    assert reference.encode(["the GOOD food"]) == Reference(run / "model", read_classifier(folder)).encode(
        ["the good food"]
    )
