"""Where rows come from: Hub id, csv, tsv, jsonl, parquet, or a folder of them -> Arrow on disk.

Files are checked line by line and written once into the datasets cache as Arrow, addressed by their
content, so that millions of rows are memory-mapped and never a list in memory. The csv reader is
Python's own: `load_dataset("csv")` turns the texts "None" and "NA" into nulls and names no line.
"""

import codecs
import csv
import difflib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from serve.contract.command import is_main_process
from serve.contract.errors import InputError, first_line
from train_loop.config import TrainConfig

SPLITS = ("train", "validation", "test")
SPLIT_FILE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
ROWS_PER_BATCH = 10_000
ARROW_FORMAT_VERSION = "1"
"""Part of the cache's address; raise it when what is written changes."""


def read_sources(config: TrainConfig) -> dict[str, datasets.Dataset]:
    """Return the splits that the source brings, each with the text columns and the label, as stored.

    Raises:
        InputError: a file is absent, empty, malformed or lacks a column; a Hub id cannot be loaded.
    """
    columns = [c for c in (config.text_column, config.text_pair_column, config.label_column) if c is not None]
    if config.train_file is not None:
        files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
        named = {split: Path(file) for split, file in files.items() if file is not None}
    elif config.dataset_name is not None and Path(config.dataset_name).is_dir():
        named = _split_files(Path(config.dataset_name))
    else:
        return _read_hub(config, columns)
    return {split: read_file(path, columns) for split, path in named.items()}


def read_file(path: Path, columns: Sequence[str]) -> datasets.Dataset:
    """Return the rows of one file, memory-mapped, with `columns` alone.

    Raises:
        InputError: the file is absent, empty, of an unknown type, not UTF-8, malformed, or lacks a column.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown type {path.suffix!r}; expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file (looked in {Path.cwd()})")
    digest = _digest(path, text=reader is not _read_parquet)
    address = hashlib.sha256("\0".join([ARROW_FORMAT_VERSION, path.suffix, digest, *columns]).encode())
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "rawloop" / f"{address.hexdigest()}.arrow"
    if not cached.is_file():
        _write_arrow(cached, reader(path, columns))
    rows = datasets.Dataset.from_file(str(cached))
    if len(rows) == 0:
        raise InputError(f"{path}: no rows; expected at least a header and some labelled rows")
    return rows


def _split_files(folder: Path) -> dict[str, Path]:
    """Find the files of each split in a folder, by their names."""
    found: dict[str, Path] = {}
    for split, stems in SPLIT_FILE_NAMES.items():
        matches = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in READERS and path.stem.lower() in stems
        )
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise InputError(f"{folder}: several files for the {split} split ({names}); name them by --train_file ...")
        if matches:
            found[split] = matches[0]
    if "train" not in found:
        raise InputError(
            f"{folder}: no training file; expected train.csv, .tsv, .jsonl or .parquet, "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        )
    return found


def _read_hub(config: TrainConfig, columns: Sequence[str]) -> dict[str, datasets.Dataset]:
    name = config.dataset_name
    assert name is not None
    if Path(name).suffix.lower() in READERS:
        raise InputError(f"--dataset_name {name}: that is a file's name; use --train_file {name}")
    try:
        loaded = datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:  # the Hub client, requests and datasets raise dozens of types here
        reason = first_line(error)
        raise InputError(
            f"--dataset_name {name}: not a folder here, and the Hub did not give it ({reason}). Check the id "
            "(namespace/name) and --dataset_config, the network, or give local files: "
            "--dataset_name FOLDER or --train_file FILE"
        ) from error
    splits: dict[str, datasets.Dataset] = {}
    for split, names in SPLIT_FILE_NAMES.items():
        match = next((key for key in loaded if key in names), None)
        if match is None:
            continue
        rows = loaded[match]
        _require_columns(f"{name} ({match})", rows.column_names, columns)
        rows = rows.select_columns(list(columns))
        if _is_unlabelled(rows, config.label_column):
            if is_main_process():
                print(f"{name}: the {match} split has no labels on the Hub; it is left aside.", flush=True)
            continue
        splits[split] = rows
    if "train" not in splits:
        raise InputError(f"{name}: no labelled train split; it has {', '.join(map(str, loaded))}")
    return splits


def _is_unlabelled(rows: datasets.Dataset, label_column: str) -> bool:
    """GLUE and others publish test rows with every label -1."""
    if not isinstance(rows.features[label_column], datasets.ClassLabel) or len(rows) == 0:
        return False
    column = rows.data.column(label_column)
    return bool(pa.compute.max(column).as_py() == -1)


def _require_columns(where: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    doubled = [column for column in wanted if list(present).count(column) > 1]
    if doubled:
        raise InputError(
            f"{where}: {', '.join(map(repr, doubled))} names several columns; rename or remove all but one"
        )
    missing = [column for column in wanted if column not in present]
    if not missing:
        return
    hints = []
    for column in missing:
        near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
        hints.append(f"{column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise InputError(
        f"{where}: no column {', '.join(hints)}; it has {', '.join(map(repr, present))}. "
        "Name them by --text_column, --text_pair_column and --label_column"
    )


def _digest(path: Path, *, text: bool) -> str:
    """Return the SHA-256 of a file; check on the way that a text file is UTF-8 and not empty."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if text:
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}: not UTF-8 at byte {offset - pending + error.start} "
                        f"({error.object[error.start : error.end]!r}); convert it, for example "
                        f"`iconv -f latin1 -t utf-8 {path.name}`"
                    ) from None
            offset += len(block)
    if offset == 0:
        raise InputError(f"{path}: the file is empty")
    if text and (pending := len(decoder.getstate()[0])):
        raise InputError(f"{path}: not UTF-8 at byte {offset - pending}: the file's last character is cut off")
    return digest.hexdigest()


def _write_arrow(cached: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches beside their final place and rename: another process sees all rows or none."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    staged = cached.with_suffix(f".{os.getpid()}.tmp")
    try:
        first = next(batches)
        with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        staged.replace(cached)
    finally:
        staged.unlink(missing_ok=True)


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        file = pq.ParquetFile(path)
        _require_columns(str(path), file.schema_arrow.names, columns)
        schema = pa.schema([file.schema_arrow.field(column).remove_metadata() for column in columns])
        yield pa.RecordBatch.from_pylist([], schema=schema)
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=list(columns)):
            yield batch.select(list(columns)).cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error})") from error


def _read_delimited(delimiter: str) -> Callable[[Path, Sequence[str]], Iterator[pa.RecordBatch]]:
    def read(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        csv.field_size_limit(1 << 30)  # the default refuses texts over 128 KiB
        schema = pa.schema([(column, pa.string()) for column in columns])
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            began = 1  # the line on which the row now read begins
            try:
                header = next(reader, [])
                _require_columns(f"{path}, line 1", header, columns)
                places = [header.index(column) for column in columns]
                yield pa.RecordBatch.from_pylist([], schema=schema)
                batch: list[list[str]] = []
                began = reader.line_num + 1
                for row in reader:
                    if len(row) != len(header):
                        if not row:  # a blank line, as many editors leave at the end
                            began = reader.line_num + 1
                            continue
                        raise InputError(
                            f"{path}, line {began}: expected {len(header)} fields, found {len(row)}; "
                            f"a text with {delimiter!r} or line breaks in it needs double quotes around it"
                        )
                    batch.append([row[place] for place in places])
                    if len(batch) == ROWS_PER_BATCH:
                        yield _string_batch(batch, schema)
                        batch = []
                    began = reader.line_num + 1
                if batch:
                    yield _string_batch(batch, schema)
            except csv.Error as error:
                raise InputError(
                    f"{path}, line {began}: not valid {path.suffix[1:]} ({error}); a double quote inside a quoted "
                    'field must be doubled ("")'
                ) from error

    return read


def _string_batch(rows: list[list[str]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(values, pa.string()) for values in zip(*rows, strict=True)], schema=schema
    )


def _read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    kinds: dict[str, type] | None = None
    with path.open(encoding="utf-8-sig") as file:
        batch: dict[int, dict[str, Any]] = {}  # by line number
        for number, line in enumerate(file, start=1):
            if line.strip():
                batch[number] = _json_row(path, number, line, columns)
            if len(batch) == ROWS_PER_BATCH:
                kinds = kinds or _json_kinds(batch.values(), columns)
                yield _json_batch(path, batch, kinds)
                batch = {}
        kinds = kinds or _json_kinds(batch.values(), columns)
        yield _json_batch(path, batch, kinds)


def _json_row(path: Path, number: int, line: str, columns: Sequence[str]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not JSON ({error}); expected one object per line") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
    _require_columns(f"{path}, line {number}", list(row), columns)
    for column in columns:
        try:
            str(row[column]).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path}, line {number}: {column!r} holds half a surrogate pair, which is not text; "
                "write the character itself, or both halves"
            ) from error
    return {column: row[column] for column in columns}


JSON_KINDS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _json_kinds(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> dict[str, type]:
    """Take the type of each column from its first value; the checks of `data.py` judge whether it is a good one."""
    kinds = {}
    for column in columns:
        first = next((row[column] for row in rows if row[column] is not None), "")
        kinds[column] = type(first) if type(first) in JSON_KINDS else str
    return kinds


def _json_batch(path: Path, batch: dict[int, dict[str, Any]], kinds: dict[str, type]) -> pa.RecordBatch:
    for number, row in batch.items():
        for column, kind in kinds.items():
            if not _fits(row[column], kind):
                raise InputError(
                    f"{path}, line {number}: expected {column!r} to be of type {kind.__name__}, found "
                    f"{row[column]!r:.80}; make each column all strings or all whole numbers"
                )
    schema = pa.schema([(column, JSON_KINDS[kind]) for column, kind in kinds.items()])
    return pa.RecordBatch.from_pylist(list(batch.values()), schema=schema)


def _fits(value: Any, kind: type) -> bool:
    """Tell whether a column of `kind` holds a JSON value unchanged; Arrow would cut 1.5 down to 1."""
    if kind is int:
        return value is None or (type(value) in (int, float) and -(2**63) <= value < 2**63 and value % 1 == 0)
    return value is None or type(value) is kind or (kind is float and type(value) is int)


READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[pa.RecordBatch]]] = {
    ".csv": _read_delimited(","),
    ".tsv": _read_delimited("\t"),
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
