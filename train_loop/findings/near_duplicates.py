"""Held-out texts that nearly equal a training text: the model may have seen their label.

MinHash (Broder 1997) over character n-grams, with datasketch: held-out rows are indexed, training rows
are streamed, and each candidate is confirmed by its exact Jaccard similarity.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

THRESHOLD = 0.7
"""Least Jaccard similarity of the n-gram sets of near duplicates."""
NGRAM = 5
NUM_PERMUTATIONS = 64
BANDS = (16, 4)
"""Bands x rows of the index: it finds texts of similarity 0.7 with probability 99 %, of 0.8 with 99.99 %."""
ROWS_PER_BATCH = 1_000
MAX_COMPARED = 100
"""Training rows that a held-out row is compared with: rows made from one template are near duplicates of thousands."""

Texts = Callable[[], Iterable[tuple[str, ...]]]


@dataclasses.dataclass(frozen=True)
class NearDuplicate:
    """A held-out row and the training row most like it, of the first MAX_COMPARED candidates."""

    row: int
    train_row: int
    similarity: float
    """Jaccard similarity of their n-grams, THRESHOLD to 1."""


def near_duplicates(held_out: Texts, train: Texts) -> list[NearDuplicate]:
    """Return the held-out rows that are near duplicates of a training row, the most similar first.

    Case and the amount of white space are ignored.
    """
    # Imported here: only needed at the end of a run.
    from datasketch import MinHashLSH

    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=BANDS)
    grams: dict[int, frozenset[bytes]] = {}
    for first, texts in _batches(held_out()):
        sets = [_ngrams(text) for text in texts]
        for place, signature in enumerate(_signatures(sets)):
            index.insert(first + place, signature, check_duplication=False)
            grams[first + place] = sets[place]
    best: dict[int, NearDuplicate] = {}
    num_compared: Counter[int] = Counter()
    for first, texts in _batches(train()):
        sets = [_ngrams(text) for text in texts]
        for place, signature in enumerate(_signatures(sets)):
            for row in index.query(signature):
                num_shared = len(sets[place] & grams[row])
                similarity = num_shared / (len(sets[place]) + len(grams[row]) - num_shared)
                if similarity >= THRESHOLD and (row not in best or similarity > best[row].similarity):
                    best[row] = NearDuplicate(row, first + place, similarity)
                num_compared[row] += 1
                if num_compared[row] == MAX_COMPARED or similarity == 1.0:
                    index.remove(row)
    return sorted(best.values(), key=lambda duplicate: (-duplicate.similarity, duplicate.row))


def _ngrams(texts: tuple[str, ...]) -> frozenset[bytes]:
    sets: set[bytes] = set()
    for side, text in enumerate(texts):
        folded = " ".join(text.lower().split())
        prefix = b"" if side == 0 else b"\0"  # keeps the two texts of a pair apart
        starts = range(max(1, len(folded) - NGRAM + 1))
        sets.update(prefix + folded[start : start + NGRAM].encode("utf-8", "replace") for start in starts)
    return frozenset(sets)


def _signatures(sets: list[frozenset[bytes]]) -> Iterator[object]:
    from datasketch import MinHash

    yield from MinHash.generator(sets, num_perm=NUM_PERMUTATIONS, hashfunc=zlib.crc32)


def _batches(texts: Iterable[tuple[str, ...]]) -> Iterator[tuple[int, list[tuple[str, ...]]]]:
    """Yield (index of the first row, texts)."""
    batch: list[tuple[str, ...]] = []
    first = 0
    for text in texts:
        batch.append(text)
        if len(batch) == ROWS_PER_BATCH:
            yield first, batch
            first += len(batch)
            batch = []
    if batch:
        yield first, batch
