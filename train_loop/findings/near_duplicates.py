"""Held-out texts that nearly equal a training text: the model may have seen their label.

MinHash (Broder 1997) over character n-grams, with datasketch: held-out rows are indexed, training rows
are streamed, and each candidate is confirmed by its exact Jaccard similarity.
"""

import dataclasses
import itertools
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

THRESHOLD = 0.7  # least Jaccard similarity of the n-gram sets of near duplicates
NGRAM = 5
NUM_PERMUTATIONS = 64
BANDS = (16, 4)
"""Bands x rows of the index: it finds texts of similarity 0.7 with probability 99 %, of 0.8 with 99.99 %."""
MAX_COMPARED = 100
"""Training rows that a held-out row is compared with: rows made from one template are near duplicates of thousands."""


@dataclasses.dataclass(frozen=True)
class NearDuplicate:
    """A held-out row and the training row most like it, of the first MAX_COMPARED candidates."""

    row: int
    train_row: int
    similarity: float  # Jaccard similarity of their n-grams, THRESHOLD to 1


def near_duplicates(held_out: Iterable[tuple[str, ...]], train: Iterable[tuple[str, ...]]) -> list[NearDuplicate]:
    """Return the held-out rows that are near duplicates of a training row, the most similar first.

    Case and the amount of white space are ignored.
    """
    # Imported here: only needed at the end of a run.
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=BANDS)
    known: list[frozenset[bytes]] = []
    for grams, signature in _signed(held_out):
        index.insert(len(known), signature, check_duplication=False)
        known.append(grams)
    best: dict[int, NearDuplicate] = {}
    num_compared: Counter[int] = Counter()
    for train_row, (grams, signature) in enumerate(_signed(train)):
        for row in index.query(signature):
            num_shared = len(grams & known[row])
            similarity = num_shared / (len(grams) + len(known[row]) - num_shared)
            if similarity >= THRESHOLD and (row not in best or similarity > best[row].similarity):
                best[row] = NearDuplicate(row, train_row, similarity)
            num_compared[row] += 1
            if num_compared[row] == MAX_COMPARED or similarity == 1.0:
                index.remove(row)
    return sorted(best.values(), key=lambda duplicate: (-duplicate.similarity, duplicate.row))


def _signed(texts: Iterable[tuple[str, ...]]) -> Iterator[tuple[frozenset[bytes], object]]:
    """Yield the n-grams of each text, and their MinHash."""
    from datasketch import MinHash

    grams, same = itertools.tee(map(_ngrams, texts))
    return zip(grams, MinHash.generator(same, num_perm=NUM_PERMUTATIONS, hashfunc=zlib.crc32), strict=True)


def _ngrams(texts: tuple[str, ...]) -> frozenset[bytes]:
    grams: set[bytes] = set()
    for prefix, text in zip((b"", b"\0"), texts, strict=False):  # the prefix keeps the two texts of a pair apart
        folded = " ".join(text.lower().split())
        starts = range(max(1, len(folded) - NGRAM + 1))
        grams.update(prefix + folded[start : start + NGRAM].encode("utf-8", "replace") for start in starts)
    return frozenset(grams)
