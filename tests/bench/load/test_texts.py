from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bench.load.texts import draw_lengths, texts_of_lengths
from serve.contract.errors import InputError


@pytest.mark.parametrize("distribution", ["17", "uniform:5:40", "lognormal:20:0.5"])
def test_made_up_texts_have_exactly_the_lengths_that_were_drawn(distribution: str, tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = np.maximum(3, draw_lengths(distribution, 40, seed=1))
    made = texts_of_lengths(tokenizer, lengths.tolist(), seed=1)
    assert [len(tokenizer.encode(text)) for text in made.texts] == lengths.tolist()
    assert made == texts_of_lengths(tokenizer, lengths.tolist(), seed=1)


def test_drawn_lengths_follow_their_distribution() -> None:
    assert set(draw_lengths("64", 10, 0).tolist()) == {64}
    uniform = draw_lengths("uniform:8:12", 2000, 0)
    assert (uniform.min(), uniform.max()) == (8, 12)
    lognormal = draw_lengths("lognormal:30:0.6", 5000, 0)
    assert np.median(lognormal) == pytest.approx(30, abs=2)
    assert lognormal.min() >= 1


@pytest.mark.parametrize(
    "distribution", ["", "0", "-3", "uniform:9:2", "uniform:1", "normal:1:2", "lognormal:x:1", "5:6"]
)
def test_a_distribution_that_cannot_be_read_names_the_forms(distribution: str) -> None:
    with pytest.raises(InputError, match=r"expected 128 \| uniform"):
        draw_lengths(distribution, 5, 0)


def test_a_text_shorter_than_one_word_is_refused(tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    with pytest.raises(InputError, match="the shortest text has 3 tokens, found 2"):
        texts_of_lengths(tokenizer, [2, 5], seed=0)
