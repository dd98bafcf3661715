"""Classify parquet files with Ray Data, on one machine or a cluster.

python -m serve.cluster --bundle runs/latest/onnx --input rows/ --output answers --id_column id
python -m serve.cluster --address auto --send_bundle ...      # on a cluster that runs; it sends the bundle along

Rows keep their order, and every row has its answer or a `reason`. Killed workers and nodes lose and double nothing.
With `--id_column` neither does a killed command: run it again.
"""

import argparse
import contextlib
import glob
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from serve.contract.bundle import BUNDLE_FILE, DeviceName, VariantName
from serve.contract.command import given_arguments, run_command
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError, WorkStopped
from serve.contract.files import sha256_of_file, write_json
from serve.contract.rows.file import require_columns
from serve.contract.rows.json_text import json_text
from serve.contract.rows.parquet import values_of
from serve.encoder import Truncation
from serve.files.output import try_lock
from serve.files.same_job import JOB_FILE, require_same_job
from serve.files.table_classifier import TableClassifier

CHECKPOINT, LOCK, REJECTS, SUMMARY = "_checkpoint", "_lock", "_rejects.jsonl", "_summary.json"
BLOCKS_PER_ACTOR = 4
"""Ray reads few files as one block, which one actor works on while the others wait."""
BATCH_ROWS = 2_048
SENT_BYTES = 400 << 20  # Ray refuses to send folders above 512 MiB
TEXT_TYPES = ("string", "large_string", "dictionary<values=string", "dictionary<values=large_string")
NOT_PARQUET = "csv and jsonl: python -m serve.predict --file FOLDER --output FOLDER"
START = "start a cluster with: ray start --head"
NAMED = 5  # reasons, or differences, that are named
CLASSIFIER_OPTIONS = ("text_column", "text_pair_column", "all_scores", "truncation", "device", "variant")


def run(argv: Sequence[str]) -> None:
    """Classify what the command line names; raises InputError if something the user gave is wrong."""
    arguments = _parser().parse_args(argv)
    ids = [name for name in [arguments.id_column] if name is not None]
    keep = None if arguments.keep_columns is None else [*dict.fromkeys([*ids, *arguments.keep_columns])]
    options = {name: getattr(arguments, name) for name in CLASSIFIER_OPTIONS} | {"keep_columns": keep}
    # Only for its checks, as it loads no model. A GPU need not be here.
    checked = TableClassifier(arguments.bundle, **options | {"device": "cpu", "variant": "auto"})
    if ids and ids[0] in checked.added:
        raise InputError(f"--id_column {ids[0]}: the answers have a column of this name; rename the one of the rows")
    files, schema, num_rows = _open_input(arguments.input, checked.columns, ids, keep)
    output = Path(arguments.output).absolute()
    bundle = "." if arguments.send_bundle else str(arguments.bundle.absolute())
    began = time.monotonic()
    with _opened_output(output, arguments, options), _ray(arguments) as ray:
        num_actors = _num_actors(arguments, ray.cluster_resources())
        print(f"{num_rows:,} rows in {len(files):,} files, {num_actors} actors", file=sys.stderr)
        try:
            rows = ray.data.read_parquet(files, columns=schema.names, override_num_blocks=num_actors * BLOCKS_PER_ACTOR)
            answered = rows.map_batches(
                TableClassifier,
                fn_constructor_args=[bundle],
                fn_constructor_kwargs=options | {"num_threads": arguments.cpus_per_actor},
                batch_format="pyarrow",
                batch_size=BATCH_ROWS,
                # Not a fixed number: where a node dies, those that are left must not take all CPUs.
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_actors),
                num_cpus=arguments.cpus_per_actor,
                num_gpus=int(arguments.device == "cuda"),
            )
            # What is there is of this job: `_opened_output` has checked.
            answered.write_parquet(str(output), mode=ray.data.SaveMode.APPEND)
        except (ray.exceptions.RayError, OSError) as error:
            remedy = "the same command goes on" if ids else "start over in a new folder, with --id_column to go on"
            raise WorkStopped(f"Ray gave up; {remedy}. {str(error).strip()}") from error
        _finish(output, checked.schema(schema), num_rows, time.monotonic() - began)


def main(argv: Sequence[str] | None = None) -> int:
    """Classify and return the exit status: 1 if the machine failed, 2 if the user can fix it."""
    return run_command(
        lambda: run(given_arguments(argv)),
        needs=("ray", "pyarrow", "onnxruntime"),
        extra="cpu,ray",
        interrupted="interrupted; with --id_column, the same command goes on",
        after_os_error="fix that; with --id_column, the same command goes on",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.cluster",
        description="Classify parquet files with Ray Data, on one machine or a cluster.",
        epilog="Exit status: 0 done, 1 the machine failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--bundle", required=True, type=Path, help="folder written by python -m export")
    parser.add_argument("--input", required=True, help="folder of parquet files, or a pattern: 'rows/*.parquet'")
    parser.add_argument("--output", required=True, help="folder for parquet files, on a disk that all nodes share")
    parser.add_argument("--id_column", help="column that identifies a row; with it, a killed command can go on")
    parser.add_argument("--text_column", help="column of the text (the one in training)")
    parser.add_argument("--text_pair_column", help="column of the second text, likewise")
    parser.add_argument("--keep_columns", nargs="*", metavar="COLUMN", help="input columns to write again (all)")
    parser.add_argument("--all_scores", action="store_true", help="write the score of every label")
    parser.add_argument("--truncation", choices=get_args(Truncation), help="side on which long texts are cut; or error")
    parser.add_argument("--variant", choices=["auto", *get_args(VariantName)], default="auto")
    parser.add_argument(
        "--device", choices=get_args(DeviceName), default="cpu", help="cuda: a GPU for each actor (cpu)"
    )
    parser.add_argument("--address", default="local", help="local starts Ray here, auto joins what runs (local)")
    parser.add_argument("--actors", type=int, help="most models at work at once (by the number of CPUs)")
    parser.add_argument("--cpus_per_actor", type=int, default=1, help="threads of each (1)")
    parser.add_argument("--send_bundle", action="store_true", help="send the bundle to nodes that lack its path")
    return parser


def _open_input(
    given: str, texts: Sequence[str], ids: Sequence[str], keep: Sequence[str] | None
) -> tuple[list[str], Any, int]:
    """Return the files, the Arrow schema of the columns to read, and the number of rows.

    Raises:
        InputError: there are none; one is not parquet, lacks a column, or has another type; or an id is null.
    """
    import pyarrow.parquet

    found = glob.glob(f"{glob.escape(given)}/*.parquet" if given and Path(given).is_dir() else given)
    files = sorted(os.path.abspath(file) for file in found if not os.path.isdir(file))
    if not files:
        raise InputError(f"--input {given}: no parquet files there; {NOT_PARQUET}")
    num_rows, problems = 0, []
    types: dict[str, Any] = {}
    for file in files:
        try:
            metadata = pyarrow.parquet.read_metadata(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{file}: not a readable parquet file ({error}); {NOT_PARQUET}") from error
        schema = metadata.schema.to_arrow_schema()
        num_rows += metadata.num_rows
        wanted = [*ids, *texts, *((types or schema.names) if keep is None else keep)]
        require_columns(file, schema.names, wanted, "Choose columns with --text_column, --id_column, --keep_columns")
        if keep is None and types and (more := sorted({*schema.names} - {*types})):
            problems.append(f"{file} has {', '.join(more)}, {files[0]} has not: pass --keep_columns")
        for name in [name for name in schema.names if name in wanted]:
            kind = schema.field(name).type
            if kind != types.setdefault(name, kind):
                problems.append(f"{name} is {types[name]} in {files[0]}, {kind} in {file}: Ray needs one type")
        if ids and _num_nulls(metadata, ids[0]):
            problems.append(f"{file} has rows whose {ids[0]} is null: give them one")
    problems += [
        f"{name} is {types[name]}, not text: pass --text_column"
        for name in texts
        if not str(types[name]).startswith(TEXT_TYPES)
    ]
    if problems:
        raise InputError(f"--input {given}: {'; '.join(problems[:NAMED])}")
    return files, pyarrow.schema([*types.items()]), num_rows


def _num_nulls(metadata: Any, name: str) -> int:
    """Return how many values of a column are null, as far as a file's statistics say."""
    # By path: a field inside of a struct may have the same name.
    place = next(leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path == name)
    statistics = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    return sum(each.null_count for each in statistics if each is not None and each.has_null_count)


@contextlib.contextmanager
def _opened_output(output: Path, arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[None]:
    """Keep others from writing to a folder; raises InputError unless it is empty or holds what the same job left."""
    if not arguments.output:
        raise InputError("--output: is empty; pass a folder")
    if output.is_file():
        raise InputError(f"--output {arguments.output}: is a file; name a folder")
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("ab") as lock:
        if not try_lock(lock):
            raise InputError(f"--output {arguments.output}: another command is writing there; wait for it")
        is_used = any(each.name not in (LOCK, JOB_FILE) for each in output.iterdir())
        if (output / SUMMARY).exists() or (arguments.id_column is None and is_used):
            unless = "" if arguments.id_column else " (only with --id_column can a killed command go on)"
            raise InputError(f"--output {arguments.output}: holds files already{unless}; choose a new folder")
        job = {"bundle": sha256_of_file(arguments.bundle / BUNDLE_FILE), "input": os.path.abspath(arguments.input)}
        job |= {name: str(value) for name, value in {**options, "id_column": arguments.id_column}.items()}
        require_same_job(output, job, output.glob("*.parquet"))
        yield


@contextlib.contextmanager
def _ray(arguments: argparse.Namespace) -> Iterator[Any]:
    """Start or join Ray, set up so that it keeps the order and, with ids, goes on after a kill.

    Raises:
        InputError: there is no cluster to join, or the bundle is too large to send.
    """
    host, _, port = arguments.address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # where nothing answers, Ray would wait for a minute
            socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"--address {arguments.address}: {error}; {START}") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")  # that one takes minutes to list a few small files
    import ray
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    environment = {}
    if arguments.send_bundle:
        if sum(file.stat().st_size for file in arguments.bundle.iterdir()) > SENT_BYTES:
            raise InputError(f"--send_bundle: {arguments.bundle} has more than 400 MiB; copy it to a shared path")
        environment["working_dir"] = str(arguments.bundle)
    # Here, reading and writing take CPUs that there are only for Ray: they need little, and the actors get all cores.
    alone = {"num_cpus": num_usable_cores() + _num_free_cpus(arguments), "include_dashboard": False}
    print(f"{'Starting' if arguments.address == 'local' else 'Joining'} Ray ({arguments.address}) ...", file=sys.stderr)
    try:
        ray.init(arguments.address, runtime_env=environment, **(alone if arguments.address == "local" else {}))
    except ConnectionError as error:
        raise InputError(f"--address {arguments.address}: {error}; {START}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        if arguments.id_column is not None:
            path = str(Path(arguments.output).absolute() / CHECKPOINT)
            context.checkpoint_config = CheckpointConfig(arguments.id_column, path)
        yield ray
    finally:
        ray.shutdown()


def _num_actors(arguments: argparse.Namespace, resources: dict[str, float]) -> int:
    """Return the largest number of actors, which leave CPUs for reading and writing: else Ray waits for ever.

    Raises:
        InputError: there are too few CPUs or GPUs.
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    num_free = _num_free_cpus(arguments)
    most = max(0, cpus - num_free) // max(1, arguments.cpus_per_actor)
    if arguments.device == "cuda":
        most = min(most, gpus)
    wanted: int = most if arguments.actors is None else arguments.actors
    if not 1 <= wanted <= most or arguments.cpus_per_actor < 1:
        raise InputError(
            f"--actors {wanted}, --cpus_per_actor {arguments.cpus_per_actor}: Ray has {cpus} CPUs and {gpus} GPUs; "
            f"{num_free} CPUs stay free for reading and writing, so at most {most} actors fit"
        )
    return wanted


def _num_free_cpus(arguments: argparse.Namespace) -> int:
    """Return the CPUs that Ray needs to read and write, and with ids to leave out what is done."""
    return 1 if arguments.id_column is None else 2


def _finish(output: Path, schema: Any, num_rows: int, seconds: float) -> None:
    """Write the rows without an answer to a file, and what became of all; `schema` is that of the answers."""
    import pyarrow.dataset

    if num_rows == 0:
        pyarrow.parquet.write_table(schema.empty_table(), output / "empty.parquet")
    answers = pyarrow.dataset.dataset(output, format="parquet")  # without names that begin with an underscore
    is_refused = pyarrow.dataset.field("reason").is_valid()
    reasons: Counter[str] = Counter()
    with (output / REJECTS).open("w", encoding="utf-8") as rejects:
        for batch in answers.to_batches(filter=is_refused):
            for values in zip(*map(values_of, batch.columns), strict=True):
                row = dict(zip(batch.schema.names, values, strict=True))
                reasons[row["reason"]] += 1
                rejects.write(json_text(row) + "\n")
    if (found := int(answers.count_rows())) != num_rows:
        raise InputError(
            f"--output {output}: {found:,} rows, not {num_rows:,}, as ids are not unique: choose another --id_column "
            "and a new folder"
        )
    write_json(
        output / SUMMARY, {"rows": num_rows, "rejected": reasons.total(), "reasons": dict(reasons.most_common(NAMED))}
    )
    print(
        f"{num_rows:,} rows · {num_rows / seconds:,.0f} rows/s · {reasons.total():,} rejected · {output}",
        file=sys.stderr,
    )
    for reason, count in reasons.most_common(NAMED):
        print(f"  {count:,} {reason} (see {output / REJECTS})", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
