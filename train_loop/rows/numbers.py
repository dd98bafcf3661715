"""A column of numbers to predict -> float64."""

import math
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.rows.label_codes import row_numbers


def encode_numbers(rows: datasets.Dataset, config: TrainConfig, where: str) -> NDArray[np.float64]:
    """Return the numbers [N] of a split or file; raises InputError for nulls, NaN, infinities and what is no number."""
    where = f"{where}, column {config.label_column!r}"
    column = rows.data.column(config.label_column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        numbers = np.array([as_number(cell) for cell in column.to_pylist()])
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        numbers = pc.fill_null(column.cast(pa.float64(), safe=False), np.nan).to_numpy()
    else:
        raise InputError(f"{where}: expected numbers, found {column.type}, as in row 1: {column[0].as_py()!r:.80}")
    indices = np.flatnonzero(~np.isfinite(numbers))
    if len(indices):
        found = column[int(indices[0])].as_py()
        raise InputError(
            f"{where}: {len(indices)} of {len(numbers)} rows ({row_numbers(indices)}) have no finite number, such as "
            f"{found!r:.40}; fix them, or remove those rows"
        )
    return numbers


def as_number(cell: Any) -> float:
    """Return a cell as a number; NaN if it is none."""
    try:
        return math.nan if isinstance(cell, str) and "_" in cell else float(cell)  # Python reads 1_000 as a number
    except (TypeError, ValueError):
        return math.nan
