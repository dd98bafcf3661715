"""Students: the parts that are kept are the model's own, in every architecture, and they load as they were."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import build
from labelled_rows import labelled_rows
from teachers import save_teacher
from tiny_models import ARCHITECTURES
from torch import nn
from transformers import AutoModelForSequenceClassification

from serve.contract.errors import InputError
from train_loop import main as train
from train_loop.distillation import student as students

pytestmark = [
    pytest.mark.usefixtures("pictureless"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # DeBERTa's and ModernBERT's imports
]

WITHOUT_STUDENTS = {"albert", "modernbert"}


@pytest.fixture
def flags(tmp_path: Path, write_rows: Callable[..., Path]) -> list[str]:
    return [
        f"--train_file={write_rows(labelled_rows(60), 'train.csv')}",
        f"--validation_file={write_rows(labelled_rows(23), 'validation.csv')}",
        "--test_fraction=0",
        f"--output_dir={tmp_path / 'runs'}",
        "--epochs=1",
        "--batch_size=8",
    ]


def saved(folder: Path, architecture: str = "bert", num_layers: int = 4) -> Path:
    """Save a classifier of four layers."""
    name = {"distilbert": "n_layers", "xlnet": "n_layer"}.get(architecture, "num_hidden_layers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, architecture, ARCHITECTURES[architecture] | {name: num_layers})
        return save_teacher(folder, ["bad", "good"], architecture=architecture)


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - WITHOUT_STUDENTS))
def test_a_student_of_every_architecture_trains_and_loads_as_it_was(
    tmp_path: Path, flags: list[str], architecture: str
) -> None:
    model = saved(tmp_path / "model", architecture)
    argv = [*flags, f"--model_name={model}", "--student_layers=2", "--student_ffn=8"]
    assert train.main([*argv, "--run_name=r", "--save_every=3"]) == 0
    student, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "runs/r/model", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    full = AutoModelForSequenceClassification.from_pretrained(model)
    assert student.config.num_hidden_layers == 2
    assert student.num_parameters() < full.num_parameters()
    assert train.main(["--resume", str(tmp_path / "runs/r")]) == 0


def test_kept_layers_and_units_are_the_models_own(tmp_path: Path, flags: list[str]) -> None:
    model = saved(tmp_path / "model")
    argv = [*flags, f"--model_name={model}"]
    full = build(argv).model.bert
    student = build([*argv, "--student_layers=2", "--student_ffn=8"]).model.bert
    assert len(student.encoder.layer) == 2
    for own, other in zip(student.encoder.layer, (full.encoder.layer[1], full.encoder.layer[3]), strict=True):
        assert torch.equal(own.attention.self.query.weight, other.attention.self.query.weight)
        rows = [int((other.intermediate.dense.weight == row).all(1).nonzero()) for row in own.intermediate.dense.weight]
        assert rows == sorted(set(rows))
        assert torch.equal(own.intermediate.dense.bias, other.intermediate.dense.bias[rows])
        assert torch.equal(own.output.dense.weight, other.output.dense.weight[:, rows])


def test_units_without_effect_go_first(tmp_path: Path, flags: list[str]) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved(tmp_path / "model"))
    silent = [0, 3, 7, 30]
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, silent] = 0
    model.save_pretrained(tmp_path / "model")
    argv = [*flags, f"--model_name={tmp_path / 'model'}"]
    full, student = build(argv), build([*argv, "--student_ffn=28"])
    rows = full.data.splits["validation"]
    np.testing.assert_allclose(student.predict(rows), full.predict(rows), atol=1e-5)


def test_layers_without_effect_go_first_by_importance(tmp_path: Path, flags: list[str]) -> None:
    labels_of = tmp_path / "model"
    model = AutoModelForSequenceClassification.from_pretrained(saved(labels_of))
    with torch.no_grad():
        for layer in (model.bert.encoder.layer[1], model.bert.encoder.layer[3]):  # those kept by default
            for output in (layer.attention.output, layer.output):
                output.dense.weight.zero_()
                output.dense.bias.zero_()
    model.save_pretrained(labels_of)
    argv = [*flags, f"--model_name={labels_of}", "--epochs=20", "--learning_rate=1e-2", "--run_name=full"]
    trained = tmp_path / "runs/full/model"
    assert train.main(argv) == 0  # so that it answers better than a guess
    finished = AutoModelForSequenceClassification.from_pretrained(trained)
    with torch.no_grad():
        for layer in (finished.bert.encoder.layer[1], finished.bert.encoder.layer[3]):
            for output in (layer.attention.output, layer.output):
                output.dense.weight.zero_()
                output.dense.bias.zero_()
    finished.save_pretrained(trained)
    argv = [*flags, f"--model_name={trained}"]
    if build(argv).evaluate(build(argv).data.splits["validation"])["loss"] > 0.5:
        pytest.fail("the model did not learn, so that this would show nothing")
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: found.append(" ".join(map(str, words))))
        build([*argv, "--student_layers=2", "--student_layer_choice=importance"])
    assert any("Student: layers 1, 3 of 4." in line for line in found)


def test_layers_are_spaced_evenly() -> None:
    assert students._evenly(6, 3) == [1, 3, 5]
    assert students._evenly(12, 4) == [2, 5, 8, 11]
    assert students._evenly(6, 4) == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("bert", ["--student_layers=4"], "has 4 layers; ask for fewer"),
        ("bert", ["--student_ffn=32"], "has 32 units in a layer; ask for fewer"),
        ("albert", ["--student_layers=1"], "albert has no list of its 4 layers"),
        ("modernbert", ["--student_layers=2"], "modernbert's layers are not alike"),
        ("modernbert", ["--student_ffn=8"], "modernbert are not two linear layers"),
        ("bert", ["--student_layer_choice=importance"], "--student_layer_choice needs --student_layers"),
        ("bert", ["--student_layers=2", "--student_layer_choice=importance", "--label_names=[x,y]"], "unknown"),
    ],
)
def test_bad_input(tmp_path: Path, flags: list[str], architecture: str, change: list[str], message: str) -> None:
    model = saved(tmp_path / "model", architecture)
    if message == "unknown":
        with torch.no_grad():  # it answers worse than a guess
            loaded = AutoModelForSequenceClassification.from_pretrained(model)
            nn.init.normal_(loaded.classifier.weight, std=30)
            loaded.save_pretrained(model)
        change, message = change[:2], "answers no better than a guess"
    with pytest.raises(InputError, match=message):
        build([*flags, f"--model_name={model}", *change])
