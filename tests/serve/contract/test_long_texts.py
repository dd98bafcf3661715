"""What is read of long texts: windows that cover them, at word boundaries, with all special tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundles import SPECIAL, VOCABULARY, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from serve.contract.errors import InputError
from serve.contract.long_texts import LongTexts, cut, pool, window_ranges

CLS, SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]


@given(st.integers(1, 500), st.integers(2, 40), st.integers(1, 40), st.integers(1, 60), st.data())
def test_windows_cover_a_text_in_order_or_are_spread_evenly_over_it(
    length: int, room: int, stride: int, max_windows: int, data: st.DataObject
) -> None:
    length = max(length, room + 1)
    word_lengths = data.draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))
    starts = np.cumsum([0, *word_lengths])

    def word_start(place: int) -> int:
        start = int(starts[starts <= place].max())
        return start if place == length or place - start <= room // 4 else place

    ranges, covers = window_ranges(length, room, stride, max_windows, word_start)
    assert 1 <= len(ranges) <= max_windows
    assert all(0 <= start < stop <= length and stop - start <= room for start, stop in ranges)
    assert [start for start, _ in ranges] == sorted(start for start, _ in ranges)
    assert ranges[-1][1] == length or max_windows == 1
    read = {place for start, stop in ranges for place in range(start, stop)}
    assert covers == (read == set(range(length)))


@pytest.mark.parametrize(
    ("length", "room", "stride", "most", "expected"),
    [
        (10, 10, None, 9, [(0, 10)]),
        (11, 10, None, 9, [(0, 6), (6, 11)]),  # about equally long
        (30, 10, None, 9, [(0, 10), (10, 20), (20, 30)]),
        (20, 10, 5, 9, [(0, 10), (5, 15), (10, 20)]),
        (17, 10, 7, 9, [(0, 10), (7, 17)]),
        (100, 10, None, 3, [(0, 10), (45, 55), (90, 100)]),
        (100, 10, None, 1, [(0, 10)]),
    ],
)
def test_windows_by_hand(
    length: int, room: int, stride: int | None, most: int, expected: list[tuple[int, int]]
) -> None:
    assert window_ranges(length, room, stride, most) == (expected, expected[-1][1] == length and length <= 30)


def encoded(*texts: str) -> tuple[Tokenizer, object]:
    tokenizer = word_tokenizer()
    (encoding,) = tokenizer.encode_batch([texts[0] if len(texts) == 1 else texts])
    return tokenizer, encoding


def words(first: int, last: int) -> str:
    return " ".join(f"w{number}" for number in range(first, last))


def test_every_window_has_the_special_tokens_and_the_places_of_its_text() -> None:
    text = words(0, 25)
    _, encoding = encoded(text)
    windows, places, is_whole = cut(encoding, 12, LongTexts(strategy="windows"), "right")
    ids = np.array(encoding.ids)  # type: ignore[attr-defined]
    assert is_whole
    assert all(ids[window][0] == CLS and ids[window][-1] == SEP for window in windows)
    inner = np.concatenate([ids[window][1:-1] for window in windows])
    np.testing.assert_array_equal(inner, [VOCABULARY[word] for word in text.split()])
    assert " ".join(text[start:stop] for _, start, stop in places) == text
    assert sum(map(len, windows)) == 25 + 3 * 2


def test_a_pair_keeps_its_shorter_text_whole_in_every_window() -> None:
    for texts in ((words(0, 4), words(10, 40)), (words(10, 40), words(0, 4))):
        _, encoding = encoded(*texts)
        windows, places, is_whole = cut(encoding, 16, LongTexts(strategy="windows"), "right")
        ids = np.array(encoding.ids)  # type: ignore[attr-defined]
        assert {sequence for sequence, _, _ in places} == {int(texts[1] == words(10, 40))}
        short = [VOCABULARY[word] for word in words(0, 4).split()]
        assert is_whole
        assert len(windows) == 4
        for window in windows:
            found = ids[window].tolist()
            assert len(found) <= 16
            assert [token for token in found if token in short] == short
            assert found.count(SEP) == 2


@pytest.mark.parametrize(("side", "kept"), [("right", ["w0", "w1", "w2"]), ("left", ["w7", "w8", "w9"])])
def test_a_pair_of_two_long_texts_keeps_half_of_a_window_of_the_shorter(side: str, kept: list[str]) -> None:
    _, encoding = encoded(words(0, 10), words(20, 40))
    windows, _, is_whole = cut(encoding, 9, LongTexts(strategy="windows"), side)  # type: ignore[arg-type]
    ids = np.array(encoding.ids)  # type: ignore[attr-defined]
    assert not is_whole
    assert all(ids[window][1:4].tolist() == [VOCABULARY[word] for word in kept] for window in windows)


def test_head_and_tail() -> None:
    _, encoding = encoded(words(0, 30))
    ids = np.array(encoding.ids)  # type: ignore[attr-defined]
    ((window,), _, is_whole) = cut(encoding, 12, LongTexts(strategy="head_tail", head_tokens=3), "right")
    expected = ["w0", "w1", "w2", *(f"w{number}" for number in range(23, 30))]
    assert ids[window].tolist() == [CLS, *(VOCABULARY[word] for word in expected), SEP]
    assert not is_whole


def test_windows_end_at_word_boundaries_but_within_a_word_that_is_longer_than_a_window() -> None:
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL, "a", "##a"))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    (encoding,) = tokenizer.encode_batch(["aaa " * 20])
    windows, _, is_whole = cut(encoding, 16, LongTexts(strategy="windows"), "right")
    assert is_whole
    assert all(encoding.tokens[window[1]] == "a" for window in windows)
    (encoding,) = tokenizer.encode_batch(["a" * 50])
    windows, _, is_whole = cut(encoding, 12, LongTexts(strategy="windows"), "right")
    assert is_whole
    assert len(windows) == 5


def test_the_logits_of_a_text_are_those_of_its_only_window_bit_for_bit_or_pooled() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    assert pool(logits, np.ones(6, int), "mean") is logits
    pooled = pool(logits, np.array([1, 3, 2]), "mean")
    np.testing.assert_array_equal(pooled[0], logits[0])
    np.testing.assert_allclose(pooled[1:], [logits[1:4].mean(axis=0), logits[4:].mean(axis=0)], rtol=1e-6)
    np.testing.assert_array_equal(pool(logits, np.array([1, 3, 2]), "max")[1], logits[1:4].max(axis=0))
    logits[2, 0] = np.nan
    assert np.isnan(pool(logits, np.array([1, 3, 2]), "max")[1, 0])


def test_a_bad_rule_is_named() -> None:
    with pytest.raises(InputError, match="long_texts: max_windows must be from 1 to 1,024, found 0"):
        LongTexts(max_windows=0)


def test_windows_that_overlap_are_all_different_and_few_however_long_the_words() -> None:
    for length, room, stride, word in ((511, 510, 1, 3), (2_000, 510, 63, 60), (2_000, 126, 15, 60), (590, 14, 1, 4)):

        def word_start(place: int, word: int = word, room: int = room, length: int = length) -> int:
            start = place // word * word
            return start if place == length or place - start <= room // 4 else place

        ranges, covers = window_ranges(length, room, stride, 1_024, word_start)
        assert covers
        assert len({start for start, _ in ranges}) == len(ranges)
        assert len(ranges) <= 1.6 * -(-(length - room + stride) // stride) + 2
