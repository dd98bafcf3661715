"""Files in, files out: classify any number of rows in constant memory, and resume after an interruption.

Next to the output grow `.OUTPUT.partial`, the same for rejected rows, and a journal with the size of both. They are
saved every few seconds, at the end of a chunk of rows. `--resume` cuts off what comes after the last save and computes
it again in the same chunks, hence in the same batches: the output is the same, byte for byte.
"""

import contextlib
import dataclasses
import glob
import itertools
import json
import shlex
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from serve.contract.errors import InputError
from serve.contract.files import write_json
from serve.contract.records import read_record
from serve.contract.rows.reader import Rows, open_rows
from serve.contract.rows.row import Malformed, Row
from serve.encoder import TextInput, is_blank, without_surrogates
from serve.files.answer_columns import Answered
from serve.files.output import (
    STDOUT,
    StagedFile,
    StandardStream,
    errors_name,
    output_format,
    publish,
    require_unwritten,
    staged_path,
)
from serve.files.progress import Progress
from serve.files.row_chunk import RowChunk, RowInputs, num_row_characters
from serve.files.same_job import changes
from serve.files.settings import STDIN, JobSettings, journal_path
from serve.files.table import Table
from serve.pipeline import Answers, Pipeline, cut_into_chunks

JOURNAL_VERSION = 3
Appendable = StagedFile | StandardStream
SAVE_EVERY_S = 2.0  # about this much work [s] is repeated after a kill


@dataclasses.dataclass(frozen=True, kw_only=True)
class Journal:
    """Progress of a job; the content of `.OUTPUT.partial.json`."""

    job: dict[str, str]  # what determines its output: input, model, settings
    num_rows: int = 0  # rows of the input that are done
    num_rejected: int = 0
    num_rejected_lines: int = 0  # lines of the file that these take; one each where it has no lines
    num_truncated: int = 0
    num_empty: int = 0  # answered rows whose text is empty or white space
    num_without_label: int = 0
    """Answered rows in which no label is given: the model abstained, or no label reached its threshold."""
    output_bytes: int = 0
    rejects_bytes: int = 0
    complete: bool = False  # all rows are done; only the files have to be renamed
    schema_version: int = JOURNAL_VERSION


class Job:
    """Classifies the rows of a file.

    `model` is what determines the model's answers; a job is only resumed with the same.
    """

    def __init__(self, settings: JobSettings, pipeline: Pipeline, model: dict[str, str]) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._identity = {**_input_identity(settings), **model, **_settings_identity(settings)}
        self._output = Path(settings.output)
        self._to_stdout = settings.output == STDOUT
        self._journal_path = journal_path(self._output)

    def run(self) -> tuple[Journal, Progress]:
        """Classify all rows; return the finished journal and how long it took.

        Raises:
            InputError: the settings do not fit the file, or another job was interrupted here.
        """
        settings = self._settings
        journal = self._begin()
        progress = Progress(journal.num_rows, quiet=settings.quiet)
        note = ""
        is_published = journal.complete and not staged_path(self._output).exists()
        if not is_published:
            names = [settings.text_column, settings.text_pair_column, settings.id_column]
            needed = [name for name in names if name is not None]
            with open_rows(settings.rows, needed, settings.keep_columns, repair=without_surrogates) as rows:
                if settings.format_is_assumed:
                    rows.values = _not_json(rows.values, settings.file)
                journal = self._classify(rows, journal, progress)
                note = str(rows.joined)
        if settings.rejects_path is not None:
            _publish_rejects(settings.rejects_path)
        if not self._to_stdout:
            self._remove_journal()
        if note:
            progress.say(f"--file {settings.file}: {note}")
        return journal, progress

    def _begin(self) -> Journal:
        """Return the journal to continue from."""
        fresh = Journal(job=self._identity)
        if self._to_stdout:
            return fresh
        require_unwritten(self._output)  # first: the journal of a running job looks like that of an interrupted one
        if not self._journal_path.exists():
            return fresh
        found = read_record(self._journal_path, Journal, JOURNAL_VERSION, made_by="python -m serve.predict")
        start_over = f"start over: rm {shlex.quote(str(self._journal_path))}"
        if not self._settings.resume:
            raise InputError(
                f"--output {self._output}: a job was interrupted after {found.num_rows:,} rows; "
                f"continue with --resume, or {start_over}"
            )
        if changed := changes(found.job, self._identity):
            raise InputError(f"--resume: not the job that was interrupted: {'; '.join(changed)}. Or {start_over}")
        return found

    def _announce(self, journal: Journal, progress: Progress) -> None:
        """Print where the job starts, and what happens to an existing output."""
        if journal.num_rows:
            progress.say(f"resuming after {journal.num_rows:,} rows")
        elif self._settings.resume:
            progress.say("--resume: no job was interrupted here; starting with the first row")
        if not self._to_stdout and self._output.exists():
            progress.say(f"{self._output} exists and will be replaced once all rows are done")

    def _classify(self, rows: Rows, journal: Journal, progress: Progress) -> Journal:
        """Write the answers to the rows after those of `journal`, and return the journal of the finished job."""
        classifier = self._pipeline.encoder.classifier
        table = Table(rows, classifier, self._settings)
        form = table.format(output_format(self._settings.output))
        with contextlib.ExitStack() as files:
            output: Appendable = StandardStream(sys.stdout, "standard output")
            if not self._to_stdout:
                output = StagedFile(self._output, journal.output_bytes)
            files.callback(output.close)
            rejects: Appendable = StandardStream(sys.stderr, "standard error")
            if self._settings.rejects_path is not None:
                rejects = StagedFile(self._settings.rejects_path, journal.rejects_bytes)
            files.callback(rejects.close)
            files.callback(progress.end)
            self._announce(journal, progress)
            if output.size == 0:
                output.append(form.begin())
            saved_at = time.monotonic()
            for chunk, answers in self._answered_chunks(rows, journal.num_rows):
                answered, refused = Answered.of(answers, classifier), chunk.refusals(answers.refused)
                output.append(form.rows(table.columns(*chunk.rows_of(answered.positions), answered)))
                if refused:
                    rejects.append("".join(each.as_line(rows.columns) for each in refused).encode())
                journal = dataclasses.replace(
                    journal,
                    num_rows=journal.num_rows + len(chunk),
                    num_rejected=journal.num_rejected + len(refused),
                    num_rejected_lines=journal.num_rejected_lines + sum(each.num_lines for each in refused),
                    num_truncated=journal.num_truncated + sum(answered.truncated),
                    num_empty=journal.num_empty + sum(is_blank(chunk.inputs[each]) for each in answered.positions),
                    num_without_label=journal.num_without_label + int((~answered.given.any(axis=1)).sum()),
                    output_bytes=output.size,
                    rejects_bytes=rejects.size,
                )
                progress.update(journal.num_rows, rows.share_read())
                if time.monotonic() - saved_at >= SAVE_EVERY_S:
                    self._save(journal, output, rejects)
                    saved_at = time.monotonic()
            journal = dataclasses.replace(journal, output_bytes=output.size, complete=True)
            self._save(journal, output, rejects)
            if not self._to_stdout:
                form.finish(staged_path(self._output), self._output)
        return journal

    def _answered_chunks(self, rows: Rows, num_done: int) -> Iterator[tuple[RowChunk, Answers]]:
        """Yield chunks of the rows after the first `num_done`, with their answers."""
        settings = self._settings
        places = RowInputs(
            rows.columns.index(settings.text_column),
            None if settings.text_pair_column is None else rows.columns.index(settings.text_pair_column),
            None if settings.id_column is None else rows.columns.index(settings.id_column),
        )
        under_way: deque[RowChunk] = deque()

        def inputs() -> Iterator[list[TextInput]]:
            first = num_done + 1
            for values in cut_into_chunks(itertools.islice(rows.values, num_done, None), num_row_characters):
                under_way.append(RowChunk(first, values, places))
                first += len(values)
                yield under_way[-1].inputs

        for answers in self._pipeline.answer_chunks(inputs(), settings.truncation):
            yield under_way.popleft(), answers

    def _remove_journal(self) -> None:
        self._journal_path.unlink(missing_ok=True)
        staged = f".{glob.escape(self._journal_path.name)}.*.tmp"  # of a process killed while writing one
        for leftover in self._output.parent.glob(staged):
            leftover.unlink(missing_ok=True)

    def _save(self, journal: Journal, output: Appendable, rejects: Appendable) -> None:
        if not self._to_stdout:
            output.flush()
            rejects.flush()
            with errors_name(self._journal_path):
                write_json(self._journal_path, dataclasses.asdict(journal))


def _publish_rejects(path: Path) -> None:
    """Give the staged file its name; an empty one is removed, and so is the file of an earlier job."""
    staged = staged_path(path)
    if staged.exists() and staged.stat().st_size == 0:
        staged.unlink()
        path.unlink(missing_ok=True)
    publish(path)


def _not_json(rows: Iterator[Row | Malformed], file: str) -> Iterator[Row | Malformed]:
    """Yield plain lines, after checking that the first one is not a JSON object."""
    first = next(rows, None)
    if isinstance(first, Row) and _is_object(first.values[0]):
        raise InputError(
            f"--file {file}: the first line is a JSON object, and a stream is read as plain lines by default; pass "
            "--input_format jsonl, or --input_format lines to classify such lines as text"
        )
    return itertools.chain([] if first is None else [first], rows)


def _is_object(line: str) -> bool:
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _input_identity(settings: JobSettings) -> dict[str, str]:
    if settings.file == STDIN or not Path(settings.file).is_file():
        return {"input": settings.file}  # `open_rows` reports what is wrong
    path = Path(settings.file).resolve()
    status = path.stat()
    return {"input": str(path), "input's bytes": str(status.st_size), "input's change [ns]": str(status.st_mtime_ns)}


def _settings_identity(settings: JobSettings) -> dict[str, str]:
    """Return the settings that determine the output, and the path of the rejects."""
    free = {"file", "output", "format_is_assumed", "rejects", "resume", "quiet"}
    rejects = "standard error" if settings.rejects_path is None else str(settings.rejects_path.resolve())
    named = {name: str(value) for name, value in dataclasses.asdict(settings).items() if name not in free}
    return {**named, "rejects": rejects}
