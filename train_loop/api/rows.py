"""Labelled rows as pandas DataFrames: those that a run would train on, and those that it is given."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.command import make_ready
from serve.contract.errors import InputError, first_line
from serve.contract.files import write_bytes
from serve.contract.labels import ProblemType
from serve.contract.text import clean
from train_loop.config import TrainConfig
from train_loop.machine.packages import NEEDED
from train_loop.machine.threads import limit_spinning

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerFast

    from train_loop.rows.data import Data
    from train_loop.rows.split import Split

FRAMES = "frames"
"""Folder in that of the runs, where rows that were given as DataFrames stay: a run that is resumed reads them there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """The rows of a run, as it would train on them: checked, labelled, split and counted in tokens."""

    config: TrainConfig
    """Where the rows come from, and how they are read; `train(rows.config)` trains on them."""
    labels: tuple[str, ...]
    """Label of each class number, in order; for numbers, the name of their column."""
    problem_type: ProblemType
    max_length: int
    """Most tokens that the model reads at once, special tokens included."""
    splits: "dict[str, DataFrame]"
    """train, validation and, unless there is none, test: columns `row` (its number in the source, from 1), the texts as
    they are in the source, the label (str, list[str] or float), `num_tokens` that the model reads, and `truncated`:
    whether some of the text is not read."""
    summary: "DataFrame"
    """A column for each split; counts of rows, percentiles of their tokens, `truncated` as a share from 0 to 1."""
    tokenizer: "PreTrainedTokenizerFast" = dataclasses.field(repr=False)
    """The model's, of transformers."""

    def tokens(self, text: str, text_pair: str | None = None) -> list[list[str]]:
        """Return the tokens that the model reads of a text or a pair: a list for each window, one unless it is long."""
        from train_loop.rows.tokens import encode

        columns = [[clean(each, self.config.cleaning)] for each in (text, text_pair) if each is not None]
        encoded = encode(self.tokenizer, columns, self.max_length, self.config.long_text_rule)
        return [self.tokenizer.convert_ids_to_tokens(window) for window in encoded.input_ids]


def load_rows(rows: "TrainConfig | DataFrame | str | Path | None" = None, **fields: Any) -> LabelledRows:
    """Read, check, label, split and tokenize rows, as a run does before it trains; nothing is trained.

    Args:
        rows: as in `train`.
        fields: fields of `TrainConfig`, as in `train`; text_column and label_column say what is read.

    Raises:
        InputError: a file or column is missing or has the name of one that is added, a row is malformed, a class is too
            small to be split, or a field is unknown or out of range.
    """
    make_ready(NEEDED, "train")
    limit_spinning()  # before torch is imported
    import pandas

    from train_loop.model.pretrained import load_tokenizer
    from train_loop.rows.data import load_data
    from train_loop.rows.summary import figures_of

    config = config_of_rows(rows, fields)
    if taken := {"row", "num_tokens", "truncated"}.intersection(config.columns):
        raise InputError(f"column {taken.pop()!r}: load_rows adds one of that name; rename yours")
    tokenizer, max_length = load_tokenizer(config)
    data = load_data(config, tokenizer, max_length)
    return LabelledRows(
        config=config,
        labels=data.labels,
        problem_type=data.problem_type,
        max_length=max_length,
        splits={name: _frame(split, data, config) for name, split in data.splits.items()},
        summary=pandas.DataFrame({name: figures_of(split, data) for name, split in data.splits.items()}),
        tokenizer=tokenizer,
    )


def _frame(split: "Split", data: "Data", config: TrainConfig) -> "DataFrame":
    frame = split.rows.select_columns(list(config.text_columns)).to_pandas()
    frame.insert(0, "row", split.source_rows + 1)
    frame[config.label_column] = split.answers(data.labels)
    return frame.assign(num_tokens=split.lengths, truncated=split.truncated)


def config_of_rows(rows: "TrainConfig | DataFrame | str | Path | None", fields: dict[str, Any]) -> TrainConfig:
    """Return the configuration of a run on rows; DataFrames among them and the fields are written to files first.

    Raises:
        InputError: as in `load_rows`.
    """
    from train_loop.command_line import config_of

    base = rows if isinstance(rows, TrainConfig) else None
    if base is not None and base.resume is not None:
        raise InputError("resume: pass it to train, as in train(resume=RUN); the configuration is then the run's own")
    if rows is not None and base is None:
        fields = {"train_file": rows} | fields
    folder = Path(fields.get("output_dir", TrainConfig.output_dir if base is None else base.output_dir), FRAMES)
    return config_of({name: file_of(value, folder) for name, value in fields.items()}, base)


def file_of(rows: Any, folder: Path) -> Any:
    """Return the parquet file in `folder` that a table is written to, named by its content; anything else as it is.

    A table is a DataFrame of pandas, or what Arrow can read, such as polars' and Arrow's own.

    Raises:
        InputError: parquet cannot hold a column.
    """
    is_pandas = hasattr(rows, "to_parquet")
    if not is_pandas and not hasattr(rows, "__arrow_c_stream__"):
        return rows
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.BufferOutputStream()
    try:
        table = pa.Table.from_pandas(rows, preserve_index=False) if is_pandas else pa.table(rows)
        table = table.replace_schema_metadata(None)
        pq.write_table(table, written, store_schema=False)  # else a reader would find pandas' types, such as categories
    except (pa.ArrowException, TypeError, ValueError) as error:
        remedy = "let each column have values of one type, or pass only the columns of texts and labels"
        raise InputError(f"the DataFrame cannot be written as parquet: {first_line(error)}; {remedy}") from error
    content = written.getvalue().to_pybytes()
    path = folder.resolve() / f"rows_{hashlib.sha256(content).hexdigest()[:12]}.parquet"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return os.fspath(path)
