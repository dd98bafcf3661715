"""Logits of texts in one file, found by the hash of the text; several processes may add to it."""

from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray


class StoredLogits:
    """Records of a hash and C logits, one after the other.

    A kill while one is written leaves a part of it, which is not read, and which the next one overwrites.
    """

    def __init__(self, path: Path, num_classes: int) -> None:
        self._path = path
        self._type = np.dtype([("text_hash", "<i8"), ("logits", "<f4", (num_classes,))])

    def missing(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which texts [N] it has no logits of."""
        return ~np.isin(hashes, self._records()["text_hash"])

    def read(self, hashes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the place of each text [N] among the stored logits, and these [S, C], memory-mapped.

        Raises:
            KeyError: it has none of a text.
        """
        if self.missing(hashes).any():
            raise KeyError(f"{self._path} lacks logits of some of {len(hashes)} texts")
        records = self._records()
        stored = np.array(records["text_hash"])
        order = np.argsort(stored, kind="stable")
        return order[np.searchsorted(stored, hashes, sorter=order)], records["logits"]

    def add(self, hashes: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Store the logits of texts [N, C]."""
        records = np.empty(len(hashes), self._type)
        records["text_hash"], records["logits"] = hashes, logits
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._path}.lock"), self._path.open("ab") as file:
            file.truncate(file.tell() // self._type.itemsize * self._type.itemsize)
            file.seek(0, 2)
            file.write(records.tobytes())

    def _records(self) -> NDArray[np.void]:
        size = self._path.stat().st_size // self._type.itemsize if self._path.is_file() else 0
        if size == 0:
            return np.empty(0, self._type)
        return np.memmap(self._path, self._type, "r", shape=(size,))
