"""`samples/`: the few training and validation rows that export needs, so that a run is self-contained.

Export calibrates int8 on the training sample and verifies its graphs on the validation sample, on any
machine, without the data set.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from serve.contract.files import write_bytes
from train_loop.config import TrainConfig
from train_loop.rows.cuts import strata, stratified_sample
from train_loop.rows.data import Data

NUM_ROWS = {"train": 512, "validation": 2_000}  # most rows of each sample


def write_samples(folder: Path, data: Data, config: TrainConfig) -> None:
    """Write train.parquet and validation.parquet: uncleaned `text`, `text_pair` for pairs, and `label`.

    Sampling uses the run's seed and is stratified by label; of several, by the rarest one of each row.
    """
    folder.mkdir(exist_ok=True)
    for name, num_rows in NUM_ROWS.items():
        split = data.splits[name]
        split = split.take(stratified_sample(strata(split.labels), num_rows, config.seed))
        rows = split.rows.with_format("arrow")[:]
        columns = dict(zip(("text", "text_pair"), map(rows.column, config.text_columns), strict=False))
        kind = pa.list_(pa.string()) if split.labels.ndim == 2 else None  # else all without a label would have none
        columns["label"] = pa.array(split.answers(data.labels), kind)
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), file)
        write_bytes(folder / f"{name}.parquet", file.getvalue().to_pybytes())
