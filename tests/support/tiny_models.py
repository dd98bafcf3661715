"""Tiny random models of every supported architecture, each with a word tokenizer, saved as folders."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

ON_TRANSFORMERS_5 = int(transformers.__version__.partition(".")[0]) >= 5
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{number}" for number in range(60)] + ["good", "bad", "fine", "not", "very", "film", "food", "the", "a"]
MAX_POSITIONS = 64

_COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "bert": _COMMON,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "roberta": {**_COMMON, "type_vocab_size": 1},
    "xlm-roberta": {**_COMMON, "type_vocab_size": 1},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
    "deberta": {**_COMMON, "relative_attention": True, "pos_att_type": "c2p|p2c", "type_vocab_size": 0},
    "deberta-v2": {**_COMMON, "relative_attention": True, "pos_att_type": "c2p|p2c", "type_vocab_size": 0},
    "electra": {**_COMMON, "embedding_size": 16},
    "albert": {**_COMMON, "embedding_size": 16},
    "mpnet": _COMMON,
    "modernbert": {**_COMMON, "global_attn_every_n_layers": 2, "local_attention": 8, "reference_compile": False},
}
_TOKEN_TYPES = {"bert", "electra", "albert", "xlnet", "deberta", "deberta-v2"}


def save_tiny_model(
    folder: Path, architecture: str = "bert", *, dropout: float = 0.0, seed: int = 0, num_labels: int = 2
) -> Path:
    """Save a tiny random classifier and its tokenizer, and return the folder."""
    torch.manual_seed(seed)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    settings = dict(ARCHITECTURES[architecture])
    if architecture != "xlnet":
        settings["max_position_embeddings"] = MAX_POSITIONS
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(vocabulary),
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
        num_labels=num_labels,
        **settings,
    )
    for name, value in list(vars(config).items()):
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, dropout)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tiny_tokenizer(architecture).save_pretrained(folder)
    return folder


def tiny_tokenizer(architecture: str = "bert") -> PreTrainedTokenizerFast:
    """Return a lower-casing word tokenizer with the special tokens, sides and inputs of an architecture."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = WhitespaceSplit()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    if architecture == "xlnet":
        single, pair = "$A:0 [SEP]:0 [CLS]:2", "$A:0 [SEP]:0 $B:1 [SEP]:1 [CLS]:2"
    else:
        single, pair = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        padding_side="left" if architecture == "xlnet" else "right",
        model_input_names=[*inputs, "token_type_ids"] if architecture in _TOKEN_TYPES else inputs,
    )
