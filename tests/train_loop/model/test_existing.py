"""Classifiers that rawloop did not train: what is taken from their files, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from existing_models import LABELS, change_config, save_existing_model
from safetensors.torch import load_file, save_file
from tiny_models import MAX_POSITIONS
from tiny_runs import save_tiny_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serve.contract.classifier import read_classifier
from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.model.existing import write_existing_model


@pytest.fixture(scope="module")
def existing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_existing_model(tmp_path_factory.mktemp("models") / "sentiment", "distilbert")


def config_of(model: Path | str, **changes: object) -> TrainConfig:
    return TrainConfig(model_name=str(model), train_file="rows.csv", **changes)  # type: ignore[arg-type]


def test_the_contract_is_made_from_the_models_own_files(existing: Path, tmp_path: Path) -> None:
    classifier = write_existing_model(tmp_path / "model", config_of(existing, text_column="body"))
    assert classifier == read_classifier(tmp_path / "model")
    assert (classifier.name, classifier.labels, classifier.text_column) == ("sentiment", LABELS, "body")
    assert (classifier.max_length, classifier.padding_side, classifier.temperature) == (MAX_POSITIONS, "right", 1.0)
    row = AutoTokenizer.from_pretrained(existing)(["a good film"], return_tensors="pt")
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval()(**row).logits
        for folder in (existing, tmp_path / "model")
    )
    assert torch.equal(before, after)


def test_labels_may_be_named_and_the_length_limited(existing: Path, tmp_path: Path) -> None:
    names = ["good", "so-so", "bad"]
    classifier = write_existing_model(tmp_path / "model", config_of(existing, label_names=names, max_length=12))
    assert (classifier.labels, classifier.max_length) == (tuple(names), 12)
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert list(config["id2label"].values()) == names


def test_a_model_of_several_labels_stays_one(existing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(existing, tmp_path / "sentiment")
    change_config(folder, problem_type="multi_label_classification")
    classifier = write_existing_model(tmp_path / "model", config_of(folder))
    assert (classifier.problem_type, classifier.thresholds.tolist()) == ("multi_label_classification", [0.5, 0.5, 0.5])
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"


def test_weights_saved_as_a_pickle_are_read(existing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(existing, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert write_existing_model(tmp_path / "model", config_of(folder)).labels == LABELS


class Planted:
    """What a pickle may do to its reader."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._file,)


def test_a_pickle_with_code_is_refused_and_not_run(existing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(existing, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Planted(tmp_path / "touched")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"--model .*pickled: could not be loaded"):
        write_existing_model(tmp_path / "model", config_of(folder))
    assert not (tmp_path / "touched").exists()


def test_the_contract_of_a_model_that_rawloop_trained_is_kept(tmp_path: Path) -> None:
    run = save_tiny_run(tmp_path / "run")
    own = read_classifier(run / "model")
    assert write_existing_model(tmp_path / "model", config_of(run / "model")) == own


def no_head(folder: Path) -> None:
    weights = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "classifier." not in name
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_encoder(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["distilbert.transformer.layer.2.ffn.lin1.bias"] = torch.zeros(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value * torch.nan for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def larger_vocabulary(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{number}" for number in range(50)])
    tokenizer.save_pretrained(folder)


def padded_left(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.save_pretrained(folder)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def configured(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, **changes)


def a_bundle(folder: Path) -> None:
    (folder / "bundle.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (configured(architectures=None), "config.json names no `architectures`, so it may be no classifier; save"),
        (configured(architectures=["BertForMaskedLM"]), "BertForMaskedLM is not a text classifier (AutoModelForS"),
        (configured(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel is not a text classifier"),
        (configured(problem_type="regression"), "a model of 3 numbers per text (regression); only one is supported"),
        (configured(id2label={"0": "yes"}, label2id={"yes": 0}), "a model of one logit; if it answers with a number"),
        (configured(id2label={"0": "a", "1": "b", "2": "a"}), "several labels are named 'a'; pass --label_names"),
        (configured(pad_token_id=7), "padding is token 7 in config.json and 0 in the tokenizer, so it belongs to"),
        (no_head, "4 weights are missing from its file (classifier.bias, classifier.weight, pre_classifier.bias, ...)"),
        (other_encoder, "its file has 1 other weights (distilbert.transformer.layer.2.ffn.lin1.bias)"),
        (larger_vocabulary, "the tokenizer has 124 tokens and the model 74, so it belongs to another model; put"),
        (padded_left, "changes its answers, on the right it does not; pass --padding_side right"),
        (of_nan, "the model's logits are not finite; its weights are damaged"),
        (cut, "could not be loaded"),
        (
            configured(id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
            "2 weights have other shapes",
        ),
        (without("config.json"), "the folder has no config.json; pass a model folder or a Hub id"),
        (without("model.safetensors"), "could not be loaded"),
        (a_bundle, "a bundle, which is exported already; pass the model that it was made from"),
    ],
)
def test_what_is_no_classifier_of_ours_is_refused_by_name(
    existing: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(existing, tmp_path / "sentiment")
    change(folder)
    with pytest.raises(InputError, match=rf"^(--model {re.escape(str(folder))}|distilbert): .*{re.escape(message)}"):
        write_existing_model(tmp_path / "model", config_of(folder))
    assert not (tmp_path / "model").exists()


def test_the_side_of_the_padding_can_be_corrected(existing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(existing, tmp_path / "sentiment")
    padded_left(folder)
    assert write_existing_model(tmp_path / "model", config_of(folder), padding_side="right").padding_side == "right"
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == "right"


def test_a_length_that_no_file_states_is_asked_for(tmp_path: Path) -> None:
    folder = save_existing_model(tmp_path / "sentiment", "xlnet")
    with pytest.raises(InputError, match=r"states the longest input; pass --max_length \[tokens\]"):
        write_existing_model(tmp_path / "model", config_of(folder))
    assert write_existing_model(tmp_path / "model", config_of(folder, max_length=40)).max_length == 40


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["good", "bad"], "--label_names has 2 names, and the model 3 labels; name all of them"),
    ],
)
def test_names_that_do_not_fit_are_refused(existing: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        write_existing_model(tmp_path / "model", config_of(existing, label_names=names))


def test_a_hub_id_without_network_or_a_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/such-model: could not be loaded .*; check the id and the network"):
        write_existing_model(tmp_path / "model", config_of("no/such-model"))


def test_a_run_is_exported_as_one(tmp_path: Path) -> None:
    run = save_tiny_run(tmp_path / "run")
    (run / "config.yaml").touch()
    with pytest.raises(InputError, match=r"a run of training; pass --run"):
        write_existing_model(tmp_path / "model", config_of(run))
