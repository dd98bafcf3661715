"""The tokens of a split as flat numbers: one array a column over the mapped Arrow data, and where windows start."""

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.integer]


class FlatTokens:
    """Finds the tokens of many windows at once, without `datasets` or Arrow in between.

    A window is one input of the model: a row, or a part of a long one. Windows are counted in the order of the rows.
    Tokens are not copied: they stay in the file that `datasets` has mapped into memory. A window takes 8
    bytes a column.
    """

    def __init__(self, tokens: datasets.Dataset) -> None:
        """Take the columns of a data set, each of lists of whole numbers that are equally long in all columns.

        A column `window_lengths` says how the tokens of a row are divided into windows.
        """
        order = tokens._indices  # datasets has no public name for the rows of a selection
        chosen = np.arange(len(tokens)) if order is None else order.column(0).to_numpy().astype(np.int64)
        self._columns: dict[str, tuple[Numbers, NDArray[np.int64]]] = {}
        """Name -> (tokens, the place of each window's first token [M])."""
        self.lengths: NDArray[np.int64] = np.zeros(len(tokens), np.int64)  # tokens of each window [M]
        for name in tokens.column_names:
            if name != "window_lengths":
                values, starts, lengths = _flatten(tokens.data.column(name))
                self._columns[name] = values, starts[chosen]
                self.lengths = lengths[chosen]
        if "window_lengths" in tokens.column_names:
            values, starts, counts = _flatten(tokens.data.column("window_lengths"))
            rows, places = within(counts[chosen])
            self.lengths = values[starts[chosen][rows] + places].astype(np.int64)
            before = np.cumsum(self.lengths) - self.lengths  # tokens before each window
            in_row = before - before[np.cumsum(counts[chosen]) - counts[chosen]][rows]
            self._columns = {name: (found, first[rows] + in_row) for name, (found, first) in self._columns.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns: input_ids, and perhaps token_type_ids."""
        return tuple(self._columns)

    def gather(self, name: str, windows: NDArray[np.int64], places: NDArray[np.int64]) -> Numbers:
        """Return the tokens of windows [B] at their places [B, T], each from 0 to below the window's length.

        Of a row without tokens, place 0 returns a token of another row.
        """
        values, starts = self._columns[name]
        return values.take(starts[windows][:, None] + places)


def within(counts: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row [M] that each of `counts` [N] things in a row belongs to, and its place there [M], from 0."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]


def _flatten(column: pa.ChunkedArray) -> tuple[Numbers, NDArray[np.int64], NDArray[np.int64]]:
    """Return one array over all tokens of a column, where each row starts in it [N], and its length [N].

    `datasets` writes a table of many pieces. They are in one file, but not side by side: the array reaches from the
    first to the last, and what lies between them is never read.
    """
    pieces = [(chunk.offsets.to_numpy().astype(np.int64), chunk.values) for chunk in column.chunks if len(chunk)]
    addresses = [piece.buffers()[1].address if len(piece) else 0 for _, piece in pieces]
    filled = [index for index, (_, piece) in enumerate(pieces) if len(piece)]
    empty = np.zeros(0, np.int64)
    lengths = np.concatenate([empty, *(np.diff(offsets) for offsets, _ in pieces)])
    if not filled:
        return np.zeros(1, np.int64), np.zeros_like(lengths), lengths
    first = min(addresses[index] for index in filled)
    end = max(addresses[index] + pieces[index][1].buffers()[1].size for index in filled)
    dtype = np.dtype(column.type.value_type.to_pandas_dtype())
    values = np.frombuffer(pa.foreign_buffer(first, (end - first) // dtype.itemsize * dtype.itemsize, column), dtype)
    starts = [
        offsets[:-1] + (piece.offset + (address - first) // dtype.itemsize)
        for address, (offsets, piece) in zip(addresses, pieces, strict=True)
    ]
    return values, np.where(lengths > 0, np.concatenate([empty, *starts]), 0), lengths
