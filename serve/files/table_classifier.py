"""Tables in, tables out, of Arrow or pandas: for Ray, Spark, pandas and polars, which hold the rows themselves."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.contract.bundle import BUNDLE_FILE
from serve.contract.errors import InputError
from serve.contract.rows.file import require_columns
from serve.contract.rows.parquet import import_pyarrow, values_of
from serve.encoder import Truncation, num_characters
from serve.files.answer_columns import Answered, answer_columns
from serve.files.output import Parquet
from serve.files.settings import AnswerOptions
from serve.files.table import free_names
from serve.pipeline import Answers, Pipeline, cut_into_chunks
from serve.predictor import open_pipeline


class TableClassifier:
    """Adds the columns of an answer to a table, whose rows all stay, in order.

    The columns are those of `python -m serve.predict`, then `num_windows` where it varies, `truncated`, and `reason`:
    why a row has no answer, and then the others are null. A bad row never ends a job. A column of the table that has
    the name of one of these becomes `input_NAME`.

    Pickled, it travels as its folder and arguments. A process loads the model once, however many it holds.

        classify = TableClassifier("runs/latest/onnx")
        table = classify(table)  # a pyarrow.Table, or a pandas.DataFrame

    Args:
        bundle: a folder written by `python -m export`.
        text_column: column of the text; None for the one in training.
        text_pair_column: column of the second text, likewise.
        keep_columns: columns of the table that stay; None for all.
        all_scores: add the score of every label.
        truncation: as in `Predictor`; `error` gives inputs that are too long a `reason`.
        options: arguments of `Predictor`.

    Raises:
        InputError: pyarrow is missing; or as in `Predictor`.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        text_column: str | None = None,
        text_pair_column: str | None = None,
        keep_columns: Sequence[str] | None = None,
        all_scores: bool = False,
        truncation: Truncation | None = None,
        **options: Any,
    ) -> None:
        given = locals().items()
        self._arguments = {name: value for name, value in given if name not in ("self", "bundle", "options")} | options
        self._arrow = import_pyarrow("TableClassifier")
        self._bundle = Path(bundle).absolute()
        manifest = self._bundle / BUNDLE_FILE
        version = manifest.stat().st_mtime_ns if manifest.exists() else 0  # without one, `open_pipeline` says so
        self._pipeline = _pipeline(os.getpid(), self._bundle, version, tuple(sorted(options.items())))
        if isinstance(keep_columns, str):
            raise InputError(f"keep_columns {keep_columns!r}: pass a list of names")
        self._truncation = truncation
        self._keep_columns = None if keep_columns is None else tuple(dict.fromkeys(keep_columns))
        classifier = self._pipeline.encoder.classifier
        if text_pair_column is not None and classifier.text_pair_column is None:
            raise InputError(f"text_pair_column {text_pair_column!r}: this classifier takes single texts; leave it out")
        names = [text_column or classifier.text_column, text_pair_column or classifier.text_pair_column]
        self.columns = tuple(name for name in names if name is not None)
        """The columns of a table that are read."""
        self._answer = answer_columns(classifier, AnswerOptions(all_scores=all_scores), holds_lists=True)
        self.added = (*self._answer.names, "reason")
        """The columns that are added."""
        self._form = Parquet(self.added, [*self._answer.types, None])

    def schema(self, schema: Any) -> Any:
        """Return the Arrow schema of what becomes of a table of this one; raises InputError if it lacks a column."""
        kept = self._kept(schema.names)
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != b"pandas"}
        fields = [
            schema.field(name).with_name(free) for name, free in zip(kept, free_names(self.added, kept), strict=True)
        ]
        has_new_names = [field.name for field in fields] != list(kept)  # those in the metadata of pandas are old
        return self._arrow.schema([*fields, *self._form.schema], metadata if has_new_names else schema.metadata)

    def __call__(self, table: Any) -> Any:
        """Return a `pyarrow.Table`, or a `pandas.DataFrame`, with the columns added.

        Raises:
            InputError: it is neither, it lacks a column, or Arrow cannot hold one.
        """
        if not isinstance(table, self._arrow.Table):
            if not hasattr(table, "to_parquet"):
                found = f"{type(table).__module__}.{type(table).__name__}".removeprefix("builtins.")
                way_out = "; pass what its to_arrow() gives" if hasattr(table, "to_arrow") else ""
                raise InputError(f"expected a pyarrow.Table or a pandas.DataFrame, found {found}{way_out}")
            try:
                rows = self._arrow.Table.from_pandas(table, preserve_index=False)
            except (self._arrow.ArrowException, TypeError) as error:
                remedy = "let each column have values of one type, or pass only the columns that are needed"
                raise InputError(f"the DataFrame cannot become an Arrow table: {error}; {remedy}") from error
            return self(rows).to_pandas().set_axis(table.index)
        schema = self.schema(table.schema)
        added = self.answers(*(values_of(table[name]) for name in self.columns)).columns
        kept = [table[name] for name in self._kept(table.column_names)]
        return self._arrow.Table.from_arrays([*kept, *added], schema=schema)

    def answers(self, *values: Sequence[Any]) -> Any:
        """Return a `pyarrow.Table` of only the added columns, for the values of `columns`, which may be of any type."""
        inputs = values[0] if len(values) == 1 else [*zip(*values, strict=True)]
        chunks = [*cut_into_chunks(inputs, num_characters)]
        batches = [*map(self._batch, self._pipeline.answer_chunks(chunks, self._truncation))]
        return self._arrow.Table.from_batches(batches, self._form.schema)

    def _kept(self, names: Sequence[str]) -> Sequence[str]:
        """Return the columns that stay, of those that a table has."""
        kept = names if self._keep_columns is None else self._keep_columns
        way_out = "Choose them with text_column, text_pair_column and keep_columns"
        require_columns("the table", names, (*self.columns, *kept), way_out)
        return kept

    def _batch(self, answers: Answers) -> Any:
        found = Answered.of(answers, self._pipeline.encoder.classifier)
        columns = [*self._answer.values(found), [None] * len(found.positions)]
        num_rows = len(answers.logits)
        places = dict(zip(found.positions, range(num_rows), strict=False))
        rows = self._arrow.array([places.get(row) for row in range(num_rows)], self._arrow.int64())
        reasons = [answers.refused[row].reason if row in answers.refused else None for row in range(num_rows)]
        spread = self._form.batch(columns).take(rows)  # a null index gives a row of nulls
        return spread.set_column(len(self.added) - 1, "reason", self._arrow.array(reasons, self._arrow.string()))

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), self._bundle, **self._arguments), ()


@functools.cache
def _pipeline(process: int, bundle: Path, version: int, options: tuple[tuple[str, Any], ...]) -> Pipeline:
    """Return the pipeline of a process, as its threads do not survive a fork, and of a version of the bundle."""
    return open_pipeline(bundle, **dict(options))
