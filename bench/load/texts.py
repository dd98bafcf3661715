"""The texts that are sent: a run's held-out rows, a file's, or made-up ones of given lengths."""

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bench.harness.workload import Workload, rows_of_file, rows_of_run
from bench.load.options import LoadOptions
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError

NUM_ROWS = 2000
"""Texts that are sent, again and again."""
LENGTHS_FORM = "128 | uniform:LOW:HIGH | lognormal:MEDIAN:SIGMA"


def read_texts(options: LoadOptions) -> Workload:
    """Return the texts to send.

    Raises:
        InputError: they cannot be read, or not be made.
    """
    if options.file is not None:
        rows = rows_of_file(options.file, text_column=options.text_column)
    elif options.lengths is not None:
        assert options.served is not None
        read_bundle(options.served, verify=False)  # the tokenizer's own error would not say what is missing
        tokenizer = Tokenizer.from_file(str(options.served / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        lengths = draw_lengths(options.lengths, NUM_ROWS, options.seed).clip(min=3)
        rows = texts_of_lengths(tokenizer, lengths.tolist(), options.seed)
    else:
        assert options.run is not None
        rows = rows_of_run(options.run, options.split)
    return rows.sample(NUM_ROWS, options.seed)


def draw_lengths(distribution: str, num_rows: int, seed: int) -> NDArray[np.int64]:
    """Return token counts [N] drawn from `128`, `uniform:8:64` or `lognormal:30:0.6` (median, sigma).

    Raises:
        InputError: the distribution cannot be read.
    """
    random = np.random.default_rng(seed)
    kind, *numbers = distribution.split(":")
    try:
        values = [float(number) for number in numbers]
        if kind == "uniform" and len(values) == 2 and 1 <= values[0] <= values[1]:
            return random.integers(int(values[0]), int(values[1]) + 1, num_rows)
        if kind == "lognormal" and len(values) == 2 and values[0] >= 1 and values[1] >= 0:
            drawn = random.lognormal(math.log(values[0]), values[1], num_rows)
            return np.maximum(1, np.rint(drawn)).astype(np.int64)
        if not numbers and int(kind) >= 1:
            return np.full(num_rows, int(kind), dtype=np.int64)
    except ValueError:
        pass
    raise InputError(f"--lengths {distribution}: expected {LENGTHS_FORM}, in tokens")


def texts_of_lengths(tokenizer: Tokenizer, lengths: Sequence[int], seed: int) -> Workload:
    """Return texts of exactly the given token counts, special tokens included, of words of the vocabulary.

    Raises:
        InputError: a length is below that of one word, or the vocabulary has too few plain words.
    """
    num_special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if min(lengths) <= num_special:
        raise InputError(f"--lengths: the shortest text has {num_special + 1} tokens, found {min(lengths)}")
    random = np.random.default_rng(seed)
    candidates = sorted(word for word in tokenizer.get_vocab() if re.fullmatch(r"[a-z][a-z0-9]+", word))
    # A word counts only if it is one token wherever it appears, also after another word.
    words = [word for word in candidates if len(tokenizer.encode(f"{word} {word}", add_special_tokens=False)) == 2]
    if len(words) < 10:
        raise InputError("--lengths: this tokenizer has no plain words of one token; name texts with --file")
    texts = [" ".join(random.choice(words, length - num_special)) for length in lengths]
    return Workload(origin=f"made of {len(words):,} words of the vocabulary, seed {seed}", texts=tuple(texts))
