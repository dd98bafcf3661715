"""A classifier that was trained elsewhere, written as a run's `model/`: weights, tokenizer and contract."""

import contextlib
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from accelerate import Accelerator
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from tokenizers import Tokenizer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from serve.contract.bundle import BUNDLE_FILE, TOKENIZER_FILE
from serve.contract.classifier import CLASSIFIER_FILE, Classifier, Side, read_classifier
from serve.contract.errors import InputError
from train_loop.config import CONFIG_FILE, TrainConfig
from train_loop.machine.processes import from_all_processes, local_main_process_first
from train_loop.model.folder import write_model
from train_loop.model.padding import fitting_padding_side, pad_on
from train_loop.model.pretrained import load_model_config, load_tokenizer, resolve_model, stated_limits
from train_loop.model.weights import label_names, load_classifier, name_labels

CLASSIFIER_SUFFIX = "ForSequenceClassification"


def write_existing_model(folder: Path, config: TrainConfig, padding_side: Side | None = None) -> Classifier:
    """Write a classifier as `model/` of a run, and return its contract.

    The contract of a model that rawloop trained is kept; otherwise it is made from config.json and the tokenizer.

    `config` names the model, the columns of its texts, and what its files do not say or say wrongly (`label_names`,
    `max_length`); without a padding side, it is the tokenizer's.

    Raises:
        InputError: it is not a classifier of texts, lacks weights or a fast tokenizer, its files
            contradict each other, or do not say what is needed.
    """
    model_config, contract = read_existing_model(config)
    labels = _labels(config, model_config, contract)
    tokenizer, longest = load_tokenizer(config, "--model")
    if config.max_length is None and contract is None and not stated_limits(model_config, tokenizer):
        _refuse(config, "neither config.json nor the tokenizer states the longest input; pass --max_length [tokens]")
    if padding_side is not None:
        pad_on(tokenizer, padding_side)
    name_labels(model_config, labels)
    model = load_classifier(config, model_config, "--model")
    _require_own_tokenizer(config, model, tokenizer)

    if contract is None:
        contract = Classifier(
            name=name_of(config, contract),
            labels=labels,
            text_column=config.text_column,
            max_length=longest,
            problem_type=model_config.problem_type or "single_label_classification",
        )
    contract = dataclasses.replace(
        contract,
        labels=labels,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        max_length=config.max_length or min(longest, contract.max_length),
        truncation_side=tokenizer.truncation_side,
        padding_side=tokenizer.padding_side,
    )
    write_model(folder, model, None, tokenizer, contract, None)
    if (file := _own_file(config, TOKENIZER_FILE)) is not None:
        # As it is, since transformers may save another: export compares the two on the rows.
        backend = Tokenizer.from_file(str(file))
        backend.no_padding()
        backend.enable_truncation(contract.max_length, direction=contract.truncation_side)
        backend.save(str(folder / TOKENIZER_FILE))
    return contract


@contextlib.contextmanager
def existing_model_folder(
    accelerator: Accelerator, config: TrainConfig, room: Path, padding_side: Side | None = None
) -> Iterator[Path]:
    """Yield a folder like a run's `model/`, which one process of each machine writes below `room`, and removes."""
    with contextlib.ExitStack() as stack:
        folder = ""
        with local_main_process_first(accelerator):
            if accelerator.is_local_main_process:
                there = next(parent for parent in (room, *room.parents) if parent.is_dir())
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".model.", dir=there))
                write_existing_model(Path(folder) / "model", config, padding_side)
        writer = accelerator.process_index - accelerator.local_process_index
        yield Path(from_all_processes(accelerator, folder)[writer]) / "model"


def as_read_by(classifier: Classifier, config: TrainConfig) -> TrainConfig:
    """Return a configuration whose texts are cleaned and cut as a classifier wants them."""
    limit, rule = classifier.max_length, dataclasses.asdict(classifier.long_texts)
    rule |= {"long_texts": rule.pop("strategy"), "window_pooling": rule.pop("pooling")}
    for name in ("head_tokens", "window_stride"):  # more than fits is the same as what fits
        rule[name] = None if rule[name] is None else min(rule[name], limit - 1)
    return dataclasses.replace(config, cleaning=classifier.cleaning, max_length=limit, **rule)


def read_existing_model(config: TrainConfig) -> tuple[PretrainedConfig, Classifier | None]:
    """Return config.json of a classifier, and its contract if rawloop trained it.

    Raises:
        InputError: it is a run, a bundle, or no classifier of texts.
    """
    folder = Path(config.model_name)
    if (folder / BUNDLE_FILE).is_file():
        _refuse(config, "a bundle, which is exported already; pass the model that it was made from")
    if (folder / CONFIG_FILE).is_file() and (folder / "model").is_dir():
        _refuse(config, f"a run of training; pass --run {shlex.quote(config.model_name)}")
    file = _own_file(config, CLASSIFIER_FILE)
    contract = None if file is None else read_classifier(file.parent)
    model_config = load_model_config(config, "--model")
    _require_classifier(config, model_config)
    return model_config, contract


def name_of(config: TrainConfig, contract: Classifier | None) -> str:
    """Return the name of a classifier: its contract's, the folder's, or the Hub id without its namespace."""
    return Path(config.model_name).resolve().name if contract is None else contract.name


def _refuse(config: TrainConfig, reason: str) -> NoReturn:
    raise InputError(f"--model {config.model_name}: {reason}")


def _own_file(config: TrainConfig, name: str) -> Path | None:
    """Return a file of the model, from its folder or the Hub."""
    if (folder := Path(resolve_model(config.model_name, config.model_revision, "--model")[0])).is_dir():
        return folder / name if (folder / name).is_file() else None
    try:
        return Path(hf_hub_download(config.model_name, name, revision=config.model_revision))
    except (EntryNotFoundError, OSError, ValueError):  # a model that cannot be found is reported with config.json
        return None


def _require_classifier(config: TrainConfig, model_config: PretrainedConfig) -> None:
    architectures = model_config.architectures or []
    train_it = f"train one from it: rawloop train --model_name {config.model_name}"
    if not architectures:
        _refuse(
            config,
            "config.json names no `architectures`, so it may be no classifier; save the model with save_pretrained, "
            f"or {train_it}",
        )
    if not architectures[0].endswith(CLASSIFIER_SUFFIX):
        _refuse(config, f"{architectures[0]} is not a text classifier (AutoModel{CLASSIFIER_SUFFIX}); {train_it}")
    is_number, num_logits = model_config.problem_type == "regression", model_config.num_labels
    if is_number and num_logits > 1:
        _refuse(config, f"a model of {num_logits} numbers per text (regression); only one is supported")
    if num_logits == 1 and not is_number:
        _refuse(
            config,
            'a model of one logit; if it answers with a number, say so in config.json, with "problem_type": '
            '"regression"; for yes or no, a model of two labels is needed',
        )


def _labels(config: TrainConfig, model_config: PretrainedConfig, contract: Classifier | None) -> tuple[str, ...]:
    num_labels = model_config.num_labels
    given = tuple(config.label_names or ())
    if given and len(given) != num_labels:
        _refuse(config, f"--label_names has {len(given)} names, and the model {num_labels} labels; name all of them")
    own = label_names(model_config)
    labels = given or own
    if contract is not None and contract.text_pair_column and config.text_pair_column is None:
        _refuse(config, "trained on pairs; pass --text_pair_column with the column of the second text")
    if contract is not None and not given and contract.labels != own:
        _refuse(
            config,
            f"label order: {CLASSIFIER_FILE} has {list(contract.labels)[:10]}, config.json {list(own)[:10]}; restore "
            "the files that were saved together",
        )
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        _refuse(config, f"several labels are named {repeated[0]!r}; pass --label_names with a name for each")
    return labels


def _require_own_tokenizer(config: TrainConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Check that the tokenizer's ids and padding are the model's."""
    num_tokens, num_rows = max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().num_embeddings
    if num_tokens > num_rows:
        _refuse(
            config,
            f"the tokenizer has {num_tokens:,} tokens and the model {num_rows:,}, so it belongs to another model; put "
            "this model's tokenizer into the folder",
        )
    pads = model.config.pad_token_id, tokenizer.pad_token_id
    if None not in pads and pads[0] != pads[1]:
        _refuse(
            config,
            f"padding is token {pads[0]} in config.json and {pads[1]} in the tokenizer, so it belongs to another "
            "model; put this model's tokenizer into the folder, or correct pad_token_id in config.json",
        )
    side = fitting_padding_side(model, tokenizer)
    if side is None:
        _refuse(
            config,
            "its answers change with padding on either side; is its pad_token_id right in config.json "
            f"({pads[0]}) and in the tokenizer ({pads[1]})?",
        )
    if (given := tokenizer.padding_side) != side:
        _refuse(
            config,
            f"padding on the {given} changes its answers, on the {side} it does not; pass --padding_side {side}",
        )
