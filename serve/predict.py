"""Classify texts, or files of any size, with an exported bundle.

python -m serve.predict --bundle runs/latest/onnx --text "I loved it"
python -m serve.predict --bundle runs/latest/onnx --file rows.csv --output predictions.csv
python -m serve.predict --bundle runs/latest/onnx --file rows/ --output predictions/    # any number of these at once
"""

import argparse
import contextlib
import dataclasses
import errno
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

from serve.answer import SHOWN_COVERAGE, answer_fields, shown_coverage, window_fields
from serve.contract.bundle import BUNDLE_FILE, DeviceName, VariantName
from serve.contract.classifier import Classifier
from serve.contract.command import given_arguments, run_command
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.contract.labels import ProblemType
from serve.contract.rows.file import ROW_FORMATS, given_delimiter
from serve.contract.rows.json_text import json_text
from serve.contract.rows.reader import LINES_COLUMN
from serve.encoder import TextInput, Truncation, is_blank, without_surrogates
from serve.files.folder import files_to_answer, is_answered, taken
from serve.files.job import Job, Journal
from serve.files.output import OUTPUT_FORMATS, STDOUT
from serve.files.same_job import require_same_job
from serve.files.settings import STDIN, JobSettings, input_format, is_standard_input, journal_path
from serve.pipeline import Pipeline
from serve.predictor import Prediction, Predictor, open_pipeline

DEFAULT_TOP_K = 3
CONTINUED = "a job that writes a file continues with --resume, one that writes a folder when it is run again"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors that would strike the next file too
TEXT_OPTIONS = ("text_pair", "top_k", "json")
OTHER_OPTIONS = ("file", "format_is_assumed", "truncation")
FILE_OPTIONS = [each.name for each in dataclasses.fields(JobSettings) if each.name not in OTHER_OPTIONS]
MODEL_OPTIONS = (
    *("device", "variant", "num_threads", "max_tokens_per_batch", "max_length"),
    *("cuda_graphs", "device_id", "gpu_memory_limit_mib", "tensorrt"),
)
HEADERS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("label", "score", "others"),
    "multi_label_classification": ("labels", "scores (* given)"),
    "regression": ("value", f"{SHOWN_COVERAGE:.0%} interval"),
}


def run(argv: Sequence[str]) -> int:
    """Classify what the command line names; return the exit status, or raise InputError for bad input."""
    arguments = _parser().parse_args(argv)
    if (arguments.text is None) == (arguments.file is None):
        raise InputError(
            "pass texts with --text (once or more often), or a file of them with --file"
            + ("" if arguments.text is None else "; not both")
        )
    _refuse_options(arguments, of="--text" if arguments.text is None else "--file")
    if arguments.file is None:
        return _predict_texts(arguments)
    return (_predict_folder if arguments.file and Path(arguments.file).is_dir() else _predict_file)(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Classify and return the exit status: 1 if the machine failed, 2 if the user can fix it."""
    return run_command(
        lambda: run(given_arguments(argv)),
        needs=("onnxruntime",),
        extra="cpu",
        interrupted=f"interrupted; {CONTINUED}",
        after_os_error=f"fix that; {CONTINUED}",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve.predict",
        description="Classify texts, or files of any size, with an exported bundle.",
        epilog="Exit status: 0 done, 1 the machine failed, 2 bad input, 130 interrupted.",
    )
    parser.add_argument("--bundle", required=True, type=Path, help="folder written by python -m export")

    texts = parser.add_argument_group("some texts")
    texts.add_argument("--text", action="append", metavar="TEXT", help="a text; can be repeated")
    texts.add_argument("--text_pair", action="append", metavar="TEXT", help="its second text, for classifiers of pairs")
    texts.add_argument("--top_k", type=int, help=f"labels to show for each ({DEFAULT_TOP_K})")
    texts.add_argument("--json", action="store_true", help="one JSON object per text instead of a table")

    files = parser.add_argument_group("a file of texts, or a folder of such files")
    files.add_argument(
        "--file",
        help="csv, tsv, jsonl, parquet or plain lines (.txt); - reads standard input; text may be gzip (.gz); "
        "of a folder, workers that write to the same folder each take some of the files",
    )
    files.add_argument(
        "--input_format", choices=ROW_FORMATS, help="if the file's name does not say it (standard input: lines)"
    )
    files.add_argument("--delimiter", help="character between the fields of csv, such as ';' (comma; in tsv a tab)")
    files.add_argument("--text_column", help="column of the text (the one in training)")
    files.add_argument("--text_pair_column", help="column of the second text, likewise")
    files.add_argument("--id_column", help="column that identifies a row (its number, counted from 1)")
    files.add_argument(
        "--output", help="csv, tsv, jsonl or parquet, by its suffix; - writes jsonl to standard output; or a folder"
    )
    files.add_argument("--all_scores", action="store_true", help="write the score of every label")
    files.add_argument(
        "--keep_columns", nargs="*", metavar="COLUMN", help="also write these input columns; without names, all of them"
    )
    files.add_argument("--label_separator", help="between labels in a cell of csv or tsv (as in training, or a comma)")
    files.add_argument("--column_per_label", action="store_true", help="several labels: a column of 0 and 1 for each")
    files.add_argument("--submission", action="store_true", help="write only the id and the answer")
    files.add_argument(
        "--rejects",
        help="file of rows without an answer, with reason, lines and content (OUTPUT.rejects.jsonl); a misplaced "
        "quote in a csv costs only the line it is in",
    )
    files.add_argument("--resume", action="store_true", help="continue an interrupted job, if there is one")
    files.add_argument("--quiet", action="store_true", help="no progress, no notes and no summary")

    model = parser.add_argument_group("the model")
    model.add_argument("--device", choices=["auto", *get_args(DeviceName)], default="auto")
    model.add_argument("--variant", choices=["auto", *get_args(VariantName)], default="auto")
    model.add_argument("--num_threads", type=int, help="cores to use (all that this process may use)")
    model.add_argument("--max_tokens_per_batch", type=int, help="padding included (by the device)")
    model.add_argument("--max_length", type=int, help="longest input in tokens (the classifier's)")
    model.add_argument(
        "--truncation", choices=get_args(Truncation), help="side on which longer ones are cut; or refuse them"
    )
    model.add_argument("--device_id", type=int, default=0, help="which GPU, of those that CUDA sees (0)")
    model.add_argument(
        "--gpu_memory_limit_mib", type=int, help="most GPU memory for weights and activations (no limit)"
    )
    model.add_argument("--cuda_graphs", action="store_true", help="record and replay the GPU's work by shape")
    model.add_argument("--tensorrt", action="store_true", help="run a bundle exported with --no_fusion on TensorRT")
    model.add_argument(
        "--skip_verification", action="store_true", help="check only the sizes of the bundle's files, not their hashes"
    )
    return parser


def _refuse_options(arguments: argparse.Namespace, *, of: str) -> None:
    """Refuse options that would have no effect: those that belong to `of`, which is absent."""
    values = _given(arguments, TEXT_OPTIONS if of == "--text" else FILE_OPTIONS)
    idle = [f"--{name}" for name, value in values.items() if value is not None and value is not False]
    if idle:
        verb, them = ("belongs", "it") if len(idle) == 1 else ("belong", "them")
        raise InputError(f"{', '.join(idle)}: {verb} to {of}; leave {them} out")


def _model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return _given(arguments, MODEL_OPTIONS) | {"verify": not arguments.skip_verification}


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names}


def _predict_texts(arguments: argparse.Namespace) -> int:
    top_k = DEFAULT_TOP_K if arguments.top_k is None else arguments.top_k
    if top_k < 1:
        raise InputError(f"--top_k {top_k}: expected 1 or more")
    texts = [without_surrogates(text) for text in arguments.text]  # bytes from the shell that are not UTF-8
    pairs = [without_surrogates(text) for text in arguments.text_pair or ()]
    if pairs and len(pairs) != len(texts):
        raise InputError(f"{len(texts)} --text and {len(pairs)} --text_pair: pass as many of each")
    inputs: list[str] | list[tuple[str, str]] = list(zip(texts, pairs, strict=True)) if pairs else texts
    with Predictor(arguments.bundle, **_model_options(arguments)) as predictor:
        if (predictor.classifier.text_pair_column is None) == bool(pairs):
            takes = "single texts: leave it out" if pairs else "pairs: pass one for each --text"
            raise InputError(f"--text_pair: this classifier takes {takes}")
        if arguments.top_k is not None and predictor.classifier.problem_type == "regression":
            raise InputError("--top_k: this classifier answers with a number; leave it out")
        predictions = predictor(inputs, truncation=arguments.truncation)
    items: list[TextInput] = [*inputs]
    for number, item in enumerate(items, start=1):
        if is_blank(item):
            print(f"note: text {number} is empty or white space; its answer means little", file=sys.stderr)
    if arguments.json:
        for item, prediction in zip(items, predictions, strict=True):
            line = json_text(_as_json(item, prediction, top_k)) + "\n"
            sys.stdout.buffer.write(line.encode())  # JSON is UTF-8, whatever the terminal
    else:
        print(_as_table(items, predictions, top_k))
    return 0


def _as_json(item: TextInput, prediction: Prediction, top_k: int) -> dict[str, Any]:
    classifier = prediction.classifier
    fields = answer_fields(classifier, [*prediction.scores.values()], shown_coverage(classifier))
    scores = {"scores": dict(prediction.top_k(top_k))} if prediction.value is None else {}
    windows = [(window.sequence, window.start, window.stop, [*window.scores.values()]) for window in prediction.windows]
    read = {"truncated": prediction.truncated, "num_tokens": prediction.num_tokens}
    return {"text": item, **fields, **scores, **read, **window_fields(classifier, windows, top_k)}


def _as_table(inputs: Sequence[TextInput], predictions: Sequence[Prediction], top_k: int) -> str:
    """Return a table for people: the answer, its score or interval, the runners-up, and the text as far as it fits."""
    rows = [(*HEADERS[predictions[0].classifier.problem_type], "text")]
    for item, prediction in zip(inputs, predictions, strict=True):
        text = " | ".join(item) if isinstance(item, tuple) else item
        text = "".join(char if char.isprintable() else " " for char in text)  # no control characters for the terminal
        shown = text if len(text) <= 60 else text[:59] + "…"
        note = f" ({len(prediction.windows)} windows)" if prediction.windows else ""
        note += " (truncated)" * prediction.truncated + " (abstained: the label is a guess)" * prediction.abstained
        rows.append((*_cells(prediction, top_k), shown + note))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(prediction: Prediction, top_k: int) -> tuple[str, ...]:
    """Return the cells below HEADERS."""
    classifier, scores = prediction.classifier, prediction.top_k(top_k)
    if prediction.value is not None:
        ends = prediction.interval(SHOWN_COVERAGE) if shown_coverage(classifier) else ()
        return f"{prediction.value:.6g}", " to ".join(f"{end:.6g}" for end in ends)
    if classifier.problem_type == "multi_label_classification":
        given = prediction.labels
        marked = (f"{label} {score:.4f}" + "*" * (label in given) for label, score in scores)
        return ", ".join(given) or "(none)", ", ".join(marked)
    return prediction.label, f"{prediction.score:.4f}", ", ".join(f"{label} {score:.4f}" for label, score in scores[1:])


def _predict_file(arguments: argparse.Namespace) -> int:
    if arguments.output is None:
        raise InputError("--file needs --output: a file name, or - for standard output")
    with contextlib.closing(open_pipeline(arguments.bundle, **_model_options(arguments))) as pipeline:
        if reason := _run_job(arguments, pipeline):
            raise InputError(reason)
    return 0


def _predict_folder(arguments: argparse.Namespace) -> int:
    """Classify the files that no other worker has; a file that cannot be read does not keep the others waiting."""
    source = Path(arguments.file)
    if idle := [name for name in ("resume", "rejects", "input_format") if getattr(arguments, name)]:
        raise InputError(f"--{', --'.join(idle)}: not with a folder, whose files each have their own; leave that out")
    if arguments.output in (None, "", STDOUT):
        raise InputError(f"--file {source}: is a folder; pass another folder as --output")
    target = Path(arguments.output)
    # In this order: another worker may make the folder meanwhile.
    if (target.exists() or target.suffix.lower()[1:] in OUTPUT_FORMATS) and not target.is_dir():
        raise InputError(f"--file {source}: is a folder, but --output {target} is a file; pass another folder")
    answers = files_to_answer(source, target)
    num_done, num_without_answers, failed = 0, 0, set()
    with contextlib.closing(open_pipeline(arguments.bundle, **_model_options(arguments))) as pipeline:
        target.mkdir(parents=True, exist_ok=True)
        settings = _given(
            arguments, [*(name for name in FILE_OPTIONS if name not in ("output", "quiet")), "truncation"]
        )
        same = {"input": str(source.resolve()), **{name: str(value) for name, value in settings.items()}}
        require_same_job(target, same | _model_identity(arguments, pipeline), answers.values())
        for number, (file, output) in enumerate(answers.items(), start=1):
            try:
                with taken(file, output) as is_mine:
                    if not is_mine:
                        continue
                    if not arguments.quiet:
                        print(f"{number}/{len(answers)} {file.name}", file=sys.stderr)
                    one = {"file": str(file), "output": str(output), "resume": journal_path(output).exists()}
                    if reason := _run_job(argparse.Namespace(**vars(arguments) | one), pipeline):
                        print(f"note: {reason}", file=sys.stderr)
                        num_without_answers += 1
                    num_done += 1
            except (InputError, OSError) as error:
                if isinstance(error, OSError) and error.errno in OF_THE_DISK:
                    raise
                print(f"error: {error}", file=sys.stderr)
                failed.add(output)
    num_open = sum(not is_answered(output) for output in {*answers.values()} - failed)
    if not arguments.quiet:
        others = f"; other workers are at {num_open:,}" if num_open > 0 else ""
        print(f"{num_done:,} of {len(answers):,} files classified by this worker{others}", file=sys.stderr)
    if failed:
        raise InputError(f"--file {source}: {len(failed):,} of its files failed, for the reasons above")
    if num_without_answers == len(answers):
        raise InputError(f"--file {source}: no row of its files could be classified, for the reasons above")
    return 0


def _run_job(arguments: argparse.Namespace, pipeline: Pipeline) -> str | None:
    """Classify a file; return what is wrong with all of its rows, if none could be classified."""
    settings = _job_settings(arguments, pipeline.encoder.classifier)
    if settings.format_is_assumed and not arguments.quiet:
        source = "standard input" if settings.file == STDIN else settings.file
        note = f"{source} is read as plain lines, one text per line; --input_format sets another format"
        print(note, file=sys.stderr)
    journal, progress = Job(settings, pipeline, _model_identity(arguments, pipeline)).run()
    rejects = str(settings.rejects_path or "standard error")
    if not arguments.quiet:
        to = "" if arguments.output == STDOUT else f" · {arguments.output}"
        print(_summary(journal, progress.rows_per_s(journal.num_rows), rejects) + to, file=sys.stderr)
    if journal.num_rejected == journal.num_rows > 0:
        return f"--file {arguments.file}: no row could be classified; {rejects} says why"
    return None


def _summary(journal: Journal, rows_per_s: float, rejects: str) -> str:
    rejected = f"{journal.num_rejected:,} rejected"
    if journal.num_rejected:
        lines = f"{journal.num_rejected_lines:,} lines, " if journal.num_rejected_lines > journal.num_rejected else ""
        rejected += f" ({lines}see {rejects})"
    return (
        f"{journal.num_rows:,} rows · {rows_per_s:,.0f} rows/s · {journal.num_empty:,} empty · "
        f"{journal.num_truncated:,} truncated · "
        + (f"{journal.num_without_label:,} without a label · " if journal.num_without_label else "")
        + rejected
    )


def _job_settings(arguments: argparse.Namespace, classifier: Classifier) -> JobSettings:
    """Return the settings of the command line, with the classifier's own columns as defaults."""
    if arguments.text_pair_column is not None and classifier.text_pair_column is None:
        raise InputError(
            f"--text_pair_column {arguments.text_pair_column}: this classifier takes single texts; leave it out"
        )
    form = arguments.input_format or input_format(arguments.file)
    if form == "lines" and classifier.text_pair_column is not None:
        raise InputError(f"--file {arguments.file}: plain lines hold one text each, but this classifier takes pairs")
    kept = arguments.keep_columns
    changed = {
        "input_format": form,
        "format_is_assumed": is_standard_input(arguments.file) and arguments.input_format is None,
        "delimiter": given_delimiter(arguments.delimiter),
        "text_column": arguments.text_column or (LINES_COLUMN if form == "lines" else classifier.text_column),
        "text_pair_column": arguments.text_pair_column or classifier.text_pair_column,
        "keep_columns": () if kept is None else tuple(kept) or None,
    }
    return JobSettings(**_given(arguments, ("file", *FILE_OPTIONS, "truncation")) | changed)


def _model_identity(arguments: argparse.Namespace, pipeline: Pipeline) -> dict[str, str]:
    """Return everything about the model that the answers depend on."""
    return {
        "bundle": sha256_of_file(arguments.bundle / BUNDLE_FILE),
        "variant": pipeline.variant,
        "device": pipeline.sessions.device,
        "max_length": str(pipeline.encoder.max_length),
        "max_tokens_per_batch": str(pipeline.max_tokens_per_batch),
        **{name: "on" for name in ("cuda_graphs", "tensorrt") if getattr(arguments, name)},  # other padding, rounding
    }


if __name__ == "__main__":
    sys.exit(main())
