"""`samples/`: the few training and validation rows that export needs, so that a run is self-contained.

Export calibrates int8 on the training sample and verifies its graphs on the validation sample, on any
machine, without the data set.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.contract.files import write_bytes
from train_loop.config import TrainConfig
from train_loop.rows.cuts import strata, stratified_sample
from train_loop.rows.data import Data
from train_loop.rows.split import Split, names_of

NUM_ROWS = {"train": 512, "validation": 2_000}  # most rows of each sample


def write_samples(folder: Path, data: Data, config: TrainConfig) -> None:
    """Write train.parquet and validation.parquet: uncleaned `text`, `text_pair` for pairs, and `label`.

    Sampling uses the run's seed and is stratified by label; of several, by the rarest one of each row.
    """
    folder.mkdir(exist_ok=True)
    for name, num_rows in NUM_ROWS.items():
        split = data.splits[name]
        chosen = stratified_sample(strata(split.labels), num_rows, config.seed)
        rows = split.rows.select(chosen).with_format("arrow")[:]
        columns = dict(zip(("text", "text_pair"), map(rows.column, config.text_columns), strict=False))
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(columns | {"label": _written(split, chosen, data.labels)}), file)
        write_bytes(folder / f"{name}.parquet", file.getvalue().to_pybytes())


def _written(split: Split, chosen: NDArray[np.int64], labels: tuple[str, ...]) -> pa.Array:
    """Return the labels of rows: a name, a list of names, or a number each."""
    known = split.labels[chosen]
    if known.ndim == 2:
        return pa.array([names_of(row, labels) for row in known], pa.list_(pa.string()))
    return pa.array(known if known.dtype.kind == "f" else [labels[code] for code in known])
