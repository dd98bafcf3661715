from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hard_texts import HARD_TEXTS, SURROGATES
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundles import VOCABULARY, save_tiny_bundle
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertTokenizerFast,
    AutoTokenizer,
    DebertaV2TokenizerFast,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    XLNetTokenizerFast,
)

from serve.contract.bundle import read_bundle
from serve.contract.classifier import Classifier, Side
from serve.contract.errors import InputError
from serve.contract.long_texts import LongTexts
from serve.encoder import Encoder, ItemError, Truncation, without_surrogates
from serve.encoding import length_sorted_batches
from train_loop.config import PACKAGED_MODEL
from train_loop.model.pretrained import resolve_model

CORPUS = [*HARD_TEXTS, "I loved the film and the food was fine", "not very good, not bad"] * 4
PAIRS = list(zip(HARD_TEXTS, HARD_TEXTS[::-1], strict=True))


def wordpiece(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(resolve_model(PACKAGED_MODEL)[0])


def byte_level_bpe(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(CORPUS, vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(folder))
    return RobertaTokenizerFast(vocab_file=str(folder / "vocab.json"), merges_file=str(folder / "merges.txt"))


def unigram(kind: Callable[..., PreTrainedTokenizerFast], single: str, pair: str, special: Sequence[str]) -> Any:
    def build(folder: Path) -> PreTrainedTokenizerFast:
        tokenizer = SentencePieceUnigramTokenizer()
        tokenizer.train_from_iterator(
            CORPUS, vocab_size=200, special_tokens=list(special), unk_token="<unk>", show_progress=False
        )
        backend: Tokenizer = tokenizer._tokenizer
        named = [(token, backend.token_to_id(token)) for token in special]
        backend.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=named)
        return kind(tokenizer_object=backend)

    return build


BERT_LIKE = "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
FAMILIES = {
    "wordpiece": wordpiece,
    "byte-level bpe": byte_level_bpe,
    "unigram, xlnet": unigram(
        XLNetTokenizerFast,
        "$A:0 <sep>:0 <cls>:2",
        "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eop>", "<eod>"],
    ),
    "unigram, albert": unigram(AlbertTokenizerFast, *BERT_LIKE, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    "unigram, deberta": unigram(DebertaV2TokenizerFast, *BERT_LIKE, ["[PAD]", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def run_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tokenizer of each family, saved as a run saves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    FAMILIES[request.param](folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # as training: 5 may change parts
    return folder


def encoder_of(folder: Path, *, is_pair: bool, max_length: int, side: Side = "right") -> tuple[Encoder, Any]:
    """Return our encoder of a saved tokenizer, and transformers' own."""
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    classifier = Classifier(
        name="run",
        labels=("a", "b"),
        text_column="text",
        text_pair_column="other" if is_pair else None,
        max_length=max_length,
        truncation_side=side,
        padding_side=theirs.padding_side,
    )
    ours = Encoder(
        folder / "tokenizer.json",
        classifier,
        input_names=theirs.model_input_names,
        pad_token_id=theirs.pad_token_id,
        pad_token_type_id=theirs.pad_token_type_id,
    )
    return ours, theirs


@pytest.mark.parametrize("side", get_args(Side))
@pytest.mark.parametrize("max_length", [9, 64, 512])
def test_texts_get_the_ids_of_the_transformers_tokenizer(run_tokenizer: Path, max_length: int, side: Side) -> None:
    ours, theirs = encoder_of(run_tokenizer, is_pair=False, max_length=max_length, side=side)
    expected = theirs(list(HARD_TEXTS), truncation=True, max_length=max_length)
    encodings = ours.encode(HARD_TEXTS)
    alone = [ours.encode([text])[0] for text in HARD_TEXTS]
    assert [encoding.ids.tolist() for encoding in encodings] == expected["input_ids"]
    assert [encoding.ids.tolist() for encoding in alone] == expected["input_ids"]
    assert [encoding.truncated for encoding in alone] == [encoding.truncated for encoding in encodings]
    assert [encoding.truncated for encoding in encodings] == [bool(each.overflowing) for each in expected.encodings]
    if "token_type_ids" in expected:
        types = [None if encoding.type_ids is None else encoding.type_ids.tolist() for encoding in encodings]
        assert types == expected["token_type_ids"]


@pytest.mark.parametrize("side", get_args(Side))
@pytest.mark.parametrize("max_length", [10, 64])
def test_pairs_get_the_ids_of_the_transformers_tokenizer(run_tokenizer: Path, max_length: int, side: Side) -> None:
    ours, theirs = encoder_of(run_tokenizer, is_pair=True, max_length=max_length, side=side)
    expected = theirs(*map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=max_length)
    encodings = ours.encode(PAIRS)
    assert [encoding.ids.tolist() for encoding in encodings] == expected["input_ids"]
    assert [ours.encode([pair])[0].ids.tolist() for pair in PAIRS] == expected["input_ids"]
    assert [encoding.truncated for encoding in encodings] == [bool(each.overflowing) for each in expected.encodings]


def test_padding_is_that_of_the_transformers_tokenizer(run_tokenizer: Path) -> None:
    ours, theirs = encoder_of(run_tokenizer, is_pair=True, max_length=40)
    expected = theirs.pad(theirs(*map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=40))
    arrays = ours.pad(ours.encode(PAIRS))
    assert list(arrays) == theirs.model_input_names
    for name, array in arrays.items():
        assert array.dtype == np.int64
        assert array.tolist() == expected[name], name


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.from_bundle(read_bundle(save_tiny_bundle(tmp_path, max_length=6)))


@pytest.fixture
def pair_encoder(tmp_path: Path) -> Encoder:
    return Encoder.from_bundle(read_bundle(save_tiny_bundle(tmp_path, max_length=6, text_pair_column="other")))


@pytest.mark.parametrize("item", [None, 3, 3.5, b"bytes", ["w1"], ("w1", 2), ("w1",), np.str_, float("nan")])
def test_what_is_no_text_is_refused_with_its_position(encoder: Encoder, item: Any) -> None:
    with pytest.raises(ItemError, match=r"input 1: expected text, found") as caught:
        encoder.encode(["w1", item, None])  # type: ignore[list-item]
    assert caught.value.index == 1


@pytest.mark.parametrize("item", ["w1", None, ("w1", None), ("w1", "w2", "w3"), ["w1", "w2"]])
def test_what_is_no_pair_is_refused_with_the_columns(pair_encoder: Encoder, item: Any) -> None:
    with pytest.raises(ItemError, match=r"input 0: expected a pair of texts \(text, other\)"):
        pair_encoder.encode([item])


def test_none_is_called_null_and_named_by_its_column(encoder: Encoder, pair_encoder: Encoder) -> None:
    with pytest.raises(ItemError, match=r"^input 0: expected text, found null$"):
        encoder.encode([None])  # type: ignore[list-item]
    with pytest.raises(ItemError, match=r"expected a pair of texts \(text, other\), found null as other$"):
        pair_encoder.encode([("w1", None)])  # type: ignore[list-item]


def test_a_bad_input_does_not_affect_the_others(encoder: Encoder) -> None:
    inputs: list[Any] = ["w1", None, "w2 w3", 7, "w1 " * 9]
    outcomes = encoder.encode_each(inputs, "error")
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Encoding",
        "ItemError",
        "Encoding",
        "ItemError",
        "ItemError",
    ]
    assert "11 tokens, more than the 6 the model takes" in str(outcomes[4])
    good = encoder.encode(["w1", "w2 w3"])
    assert [outcomes[0].ids.tolist(), outcomes[2].ids.tolist()] == [each.ids.tolist() for each in good]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("truncation", "kept"), [("right", ["w1", "w2", "w3", "w4"]), ("left", ["w3", "w4", "w5", "w6"])]
)
def test_truncation_drops_tokens_on_the_side_asked_for(
    encoder: Encoder, truncation: Truncation, kept: list[str]
) -> None:
    (encoding,) = encoder.encode(["w1 w2 w3 w4 w5 w6"], truncation)
    assert encoding.ids.tolist() == [VOCABULARY[word] for word in ("[CLS]", *kept, "[SEP]")]
    assert encoding.truncated
    assert encoding.num_tokens == 6


def test_what_just_fits_is_not_truncated(encoder: Encoder) -> None:
    (encoding,) = encoder.encode(["w1 w2 w3 w4"], "error")
    assert not encoding.truncated
    assert encoding.num_tokens == 6


@pytest.mark.parametrize(("text", "read_as"), SURROGATES)
def test_surrogates_are_joined_or_replaced(encoder: Encoder, text: str, read_as: str) -> None:
    assert without_surrogates(text) == read_as
    assert encoder.encode([text])[0].ids.tolist() == encoder.encode([read_as])[0].ids.tolist()


@given(st.text(st.characters(), max_size=20))
def test_every_text_becomes_one_that_utf8_can_hold(text: str) -> None:
    cleaned = without_surrogates(text)
    cleaned.encode()
    assert without_surrogates(cleaned) == cleaned


def test_cleaning_is_the_classifiers(tmp_path: Path) -> None:
    encoder = Encoder.from_bundle(read_bundle(save_tiny_bundle(tmp_path, cleaning="alphanumeric")))
    assert encoder.encode(["W1, *w2*!"])[0].ids.tolist() == encoder.encode(["w1 w2"])[0].ids.tolist()


@pytest.mark.parametrize(
    ("words", "multiple", "length"), [(5, 8, 8), (6, 8, 8), (7, 8, 15), (12, 8, 15), (5, 32, 15), (5, 1, 7)]
)
def test_lengths_are_rounded_up_within_the_longest(tmp_path: Path, words: int, multiple: int, length: int) -> None:
    encoder = Encoder.from_bundle(read_bundle(save_tiny_bundle(tmp_path, max_length=15)))
    encodings = encoder.encode(["w1 w2", "w3 " * words])  # and two special tokens
    assert encoder.pad(encodings, length_multiple=multiple)["input_ids"].shape == (2, length)


def test_padding_is_on_the_requested_side(encoder: Encoder) -> None:
    encodings = encoder.encode(["w1", "w1 w2 w3"])
    left, wide = encoder.pad(encodings, "left"), encoder.pad(encodings, length=8)
    assert left["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert left["input_ids"][0].tolist() == [0, 0, *encodings[0].ids.tolist()]
    assert wide["attention_mask"].sum(axis=1).tolist() == [3, 5]
    assert wide["input_ids"].shape == (2, 8)


@pytest.mark.parametrize("max_length", [0, 2, 7])
def test_a_length_that_holds_no_text_or_was_never_trained_is_refused(tmp_path: Path, max_length: int) -> None:
    bundle = read_bundle(save_tiny_bundle(tmp_path, max_length=6))
    with pytest.raises(InputError, match=f"max_length {max_length}: expected from 3 .* to 6"):
        Encoder.from_bundle(bundle, max_length=max_length)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    bundle = read_bundle(save_tiny_bundle(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        Encoder.from_bundle(bundle)


def test_threads_may_truncate_differently_at_once(encoder: Encoder) -> None:
    text = "w1 w2 w3 w4 w5 w6"
    expected = {how: encoder.encode([text], how)[0].ids.tolist() for how in ("right", "left")}

    def encode(number: int) -> bool:
        how: Truncation = "left" if number % 2 else "right"
        return all(each.ids.tolist() == expected[how] for each in encoder.encode([text] * 5, how))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(encode, range(200)))


@given(
    lengths=st.lists(st.integers(1, 512), max_size=200),
    max_tokens=st.integers(1, 4096),
    max_rows=st.integers(1, 64),
)
def test_batches_hold_every_row_once_within_the_budget(lengths: list[int], max_tokens: int, max_rows: int) -> None:
    batches = length_sorted_batches(lengths, max_tokens, max_rows)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(in_order)
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= max_tokens


def test_a_tokenizer_without_a_token_for_unknown_words_refuses_only_those(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "good": 1}))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    classifier = Classifier(name="tiny", labels=("a", "b"), text_column="text", max_length=8)
    names = ("input_ids", "attention_mask", "token_type_ids")
    encoder = Encoder(tmp_path / "tokenizer.json", classifier, input_names=names, pad_token_id=0)
    good, unknown = encoder.encode_each(["good", "b"])
    assert not isinstance(good, ItemError)
    assert isinstance(unknown, ItemError)


@pytest.mark.parametrize("long_texts", [LongTexts(), LongTexts(strategy="windows")])
def test_unknown_tokens_are_counted_in_what_the_model_reads(tmp_path: Path, long_texts: LongTexts) -> None:
    encoder = Encoder.from_bundle(read_bundle(save_tiny_bundle(tmp_path, long_texts=long_texts)))
    (none,), (some,) = encoder.encode(["good w1"]), encoder.encode(["good " * 13 + "what? this? w1"])
    assert none.num_unknown == 0
    assert sum(window.num_unknown for window in some.windows) == (1 if long_texts.cuts_off else 2)


def test_unknown_tokens_are_those_of_the_transformers_tokenizer(run_tokenizer: Path) -> None:
    ours, theirs = encoder_of(run_tokenizer, is_pair=False, max_length=64)
    text = "\U0001f9ec \u4dae fine"  # of no corpus
    (encoding,) = ours.encode([text])
    read = theirs.convert_ids_to_tokens(theirs(text)["input_ids"])
    assert encoding.num_unknown == sum(token in ("[UNK]", "<unk>") for token in read)
    assert encoding.num_unknown > 0 or "byte" in str(theirs.backend_tokenizer.pre_tokenizer).lower()
