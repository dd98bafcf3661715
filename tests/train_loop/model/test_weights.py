"""What is loaded from a pretrained model, and what is new."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, ON_TRANSFORMERS_5, save_tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.model.padding import fit_to_tokenizer, padding_changes_answers
from train_loop.model.pretrained import load_tokenizer
from train_loop.model.weights import (
    attention_on,
    load_finished_model,
    load_model,
)

# torch deprecates what transformers still imports for DeBERTa and ModernBERT.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

CPU = torch.device("cpu")
NAMES = ("no", "perhaps", "yes")
WITHOUT_FUSED_ATTENTION = {"xlnet", "deberta", "deberta-v2", "mpnet", *([] if ON_TRANSFORMERS_5 else ["electra"])}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def config_of(folder: Path, **fields: object) -> TrainConfig:
    return TrainConfig(train_file="rows.csv", model_name=str(folder), **fields)


def load(folder: Path, labels: tuple[str, ...] = NAMES, seed: int = 0) -> tuple[PreTrainedModel, str]:
    """Return the model and what was reported."""
    torch.manual_seed(seed)
    lines: list[str] = []
    return load_model(config_of(folder), labels, CPU, lines.append).eval(), " ".join(lines)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([[2, 7, 9, 11, 3]])).logits[0]


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


# The head


@pytest.fixture
def finished(tmp_path: Path, folder: Path) -> Path:
    """Return a model with a head for NAMES, as a run leaves it."""
    model, _ = load(folder)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.save_pretrained(tmp_path / "finished")
    tiny_tokenizer().save_pretrained(tmp_path / "finished")
    return tmp_path / "finished"


@pytest.mark.parametrize("labels", [NAMES, ("yes", "no", "perhaps")])
def test_a_head_for_the_same_labels_is_kept_in_their_new_order(finished: Path, labels: tuple[str, ...]) -> None:
    before = dict(zip(NAMES, logits(AutoModelForSequenceClassification.from_pretrained(finished).eval()), strict=True))
    model, report = load(finished, labels)
    assert dict(zip(labels, logits(model).tolist(), strict=True)) == pytest.approx(
        {name: value.item() for name, value in before.items()}
    )
    assert report == "Head: kept, as it is for the same 3 labels."
    assert tuple(model.config.id2label.values()) == labels


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_architecture_keeps_its_head_in_the_new_order(tmp_path: Path, architecture: str) -> None:
    source = save_tiny_model(tmp_path / "model", architecture)
    edit_config(source, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    (straight, _), (turned, _) = load(source, ("no", "yes")), load(source, ("yes", "no"))
    torch.testing.assert_close(logits(turned), logits(straight).flip(0))


def test_a_head_for_other_labels_is_new_and_reported(finished: Path) -> None:
    model, report = load(finished, ("blue", "green", "red"), seed=1)
    assert model.classifier.bias.tolist() == [0, 0, 0]
    assert not torch.equal(model.classifier.weight, load_file(finished / "model.safetensors")["classifier.weight"])
    assert "Head: new; the model's is for other labels (no, perhaps, yes)" in report
    again, _ = load(finished, ("blue", "green", "red"), seed=1)
    assert torch.equal(model.classifier.weight, again.classifier.weight)


def test_the_reported_way_to_keep_a_head_works(folder: Path) -> None:
    """The tiny model's labels are LABEL_0 and LABEL_1, transformers' names for a head without names."""
    _, report = load(folder, ("bad", "good"))
    assert "other labels (LABEL_0, LABEL_1); to keep it, give its config.json your id2label" in report
    edit_config(folder, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    model, report = load(folder, ("bad", "good"))
    assert "kept" in report
    assert torch.equal(model.classifier.weight, load_file(folder / "model.safetensors")["classifier.weight"])


def test_class_numbers_are_the_names_of_an_unnamed_head(folder: Path) -> None:
    assert "kept" in load(folder, ("0", "1"))[1]
    assert "new" in load(folder, ("1", "2"))[1]


def test_a_config_that_skips_a_class_number_is_that_of_another_head(folder: Path) -> None:
    edit_config(folder, id2label={1: "no", 2: "yes"}, label2id={"no": 1, "yes": 2})
    assert "Head: new; the model's is for other labels (LABEL_0, no)" in load(folder, ("no", "yes"))[1]


def test_a_head_of_another_size_is_new(folder: Path) -> None:
    assert load(folder)[1] == "Head: new, for 3 labels."


# The encoder


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_weights_saved_from_within_a_wrapper_are_the_same_weights(folder: Path, prefix: str, form: str) -> None:
    edit_config(folder, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    expected = logits(load(folder, ("no", "yes"))[0])
    edit_weights(folder, lambda weights: {prefix + name: tensor for name, tensor in weights.items()})
    if form == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    torch.testing.assert_close(logits(load(folder, ("no", "yes"))[0]), expected)


def test_an_encoder_without_a_head_or_pooler_loads(folder: Path) -> None:
    edit_weights(
        folder,
        lambda weights: (
            {
                name.removeprefix("bert."): tensor
                for name, tensor in weights.items()
                if name.startswith("bert.") and "pooler" not in name
            }
            | {"embeddings.position_ids": torch.arange(64)[None], "cls.predictions.bias": torch.zeros(3)}
        ),
    )
    assert load(folder)[1] == "Head: new, for 3 labels."


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"vocab_size": 100}, r"1 of another shape \(bert\.embeddings\.word_embeddings\.weight\)"),
        ({"max_position_embeddings": 128}, r"1 of another shape \(bert\.embeddings\.position_embeddings\.weight\)"),
        ({"num_hidden_layers": 3}, r"16 missing from its file \(bert\.encoder\.layer\.2\..*, \.\.\.\)"),
        ({"num_hidden_layers": 1}, r"16 unknown to the model \(bert\.encoder\.layer\.1\..*, \.\.\.\)"),
        ({"intermediate_size": 64}, r"6 of another shape"),
    ],
)
def test_an_encoder_that_is_not_as_configured_is_refused(folder: Path, fields: dict[str, int], problem: str) -> None:
    edit_config(folder, **fields)
    with pytest.raises(InputError, match=rf"encoder's weights are not those .*: {problem}.* save_pretrained"):
        load(folder)


def test_weights_under_unknown_names_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: {"student." + name: tensor for name, tensor in weights.items()})
    with pytest.raises(InputError, match=r"\d+ missing from its file \(bert\."):
        load(folder)


def test_a_finished_model_with_weights_of_other_names_is_not_evaluated(finished: Path) -> None:
    load_finished_model(finished, "eager")
    edit_weights(finished, lambda weights: {"module." + name: tensor for name, tensor in weights.items()})
    with pytest.raises(InputError, match=r"not those of a finished run \(.*\); restore them, or train again"):
        load_finished_model(finished, "eager")
    assert "kept" in load(finished)[1]  # the way out


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_attention_is_chosen_and_never_left_to_what_is_installed(tmp_path: Path, architecture: str) -> None:
    source = save_tiny_model(tmp_path / "model", architecture)
    for device, fused in ((CPU, False), (torch.device("cuda"), architecture not in WITHOUT_FUSED_ATTENTION)):
        model = load_model(config_of(source), NAMES, device)
        assert model.config._attn_implementation == ("sdpa" if fused else "eager")


# The tokenizer


def fitted(folder: Path, labels: tuple[str, ...] = NAMES) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, list[str]]:
    model, lines = load(folder, labels)[0], []
    tokenizer, _ = load_tokenizer(config_of(folder))
    fit_to_tokenizer(model, tokenizer, lines.append)
    return model, tokenizer, lines


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_a_fitting_tokenizer_is_left_as_it_is(tmp_path: Path, architecture: str) -> None:
    _, tokenizer, lines = fitted(save_tiny_model(tmp_path / "model", architecture))
    assert (lines, tokenizer.padding_side) == ([], "left" if architecture == "xlnet" else "right")


def test_padding_that_shifts_positions_moves_to_the_other_side(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(folder)
    model, tokenizer, lines = fitted(folder)
    assert lines == ["Padding: on the right, because padding on the left changes this model's answers."]
    tokenizer.save_pretrained(folder)
    assert PreTrainedTokenizerFast.from_pretrained(folder).padding_side == "right"
    assert padding_changes_answers(model, tokenizer, "left")
    assert not padding_changes_answers(model, tokenizer, "right")


def test_tokens_that_the_embedding_lacks_get_rows(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<user>", "<url>"])
    tokenizer.save_pretrained(folder)
    before = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    model, _, lines = fitted(folder)
    after = model.get_input_embeddings().weight
    assert lines == ["Embedding: 2 new rows, for tokens that only the tokenizer has."]
    assert model.config.vocab_size == len(after) == len(before) + 2
    assert torch.equal(after[:-2], before)
    assert np.isfinite(after.detach().numpy()).all()


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2"])
def test_a_decoder_takes_the_padding_token_of_its_tokenizer(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    small = {"n_embd": 16, "n_layer": 2, "n_head": 2} if architecture == "gpt2" else {"num_key_value_heads": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model(architecture, vocab_size=74, **(small if architecture == "gpt2" else small | sizes))
    config.pad_token_id = None
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer, _ = fitted(tmp_path)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert not padding_changes_answers(model, tokenizer, tokenizer.padding_side)


def test_a_pair_has_one_segment_where_the_model_knows_only_one(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "model", "bert")
    edit_config(source, type_vocab_size=1)
    edit_weights(
        source,
        lambda weights: {
            name: tensor[:1].contiguous() if "token_type" in name else tensor for name, tensor in weights.items()
        },
    )
    assert "token_type_ids" not in load_tokenizer(config_of(source))[0].model_input_names


def test_a_tokenizer_that_needs_sentencepiece_is_reported_with_its_packages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "spm.model").write_bytes(b"\n")
    edit_config(folder, model_type="deberta-v2")
    with pytest.raises(InputError, match="SentencePiece model needs two packages: pip install sentencepiece protobuf"):
        load_tokenizer(config_of(folder))


def test_logits_are_float32_under_autocast(tiny_model: Path) -> None:
    config = TrainConfig(train_file="rows.csv", model_name=str(tiny_model))
    model = load_model(config, ("a", "b"), torch.device("cpu")).eval()
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3]])}
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**inputs).logits.dtype == torch.float32
    head = copy.deepcopy(model).classifier
    torch.nn.init.zeros_(head.weight)
    assert model.classifier.weight.abs().max() > 0
    assert (head(torch.ones(1, head.in_features)) == head.bias).all()


def test_attention_is_a_choice(tmp_path: Path, tiny_model: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_model)
    assert attention_on(torch.device("cpu"), config, "sdpa") == "sdpa"
    deberta = AutoConfig.from_pretrained(save_tiny_model(tmp_path / "model", "deberta-v2"))
    with pytest.raises(InputError, match="--attn_implementation sdpa: deberta-v2 has no such attention"):
        attention_on(torch.device("cuda"), deberta, "sdpa")
