"""Inputs -> tokens -> batches of similar length -> logits, in the order of the inputs.

A few inputs run on the wide session, in the calling thread. Many are cut into small batches that threads run on the
narrow session, longest first. In a stream of chunks, the next ones are tokenized while the model runs, and a worker
that is done with one chunk continues with the next.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.long_texts import pool
from serve.encoder import Encoder, ItemError, TextInput, Truncation
from serve.encoding import Encoding, length_sorted_batches, windows_of
from serve.session import Session, SessionPool

T = TypeVar("T")

TOKENS_PER_BATCH = {"cpu": 512, "cuda": 16_384}
"""Default tokens in a batch, padding included. On a CPU, what fits into a core's own cache."""

CHUNK_ROWS = 512
CHUNK_CHARACTERS = 1_000_000  # a chunk ends at this many rows or characters, so that memory stays constant

CHUNKS_AHEAD = 3  # chunks being tokenized or run besides the one whose answers are due next

BATCHES_PER_WORKER = 4
"""A short list is cut into this many, so that no worker waits long for the one with the longest texts."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to a chunk of N inputs, in order."""

    logits: NDArray[np.float32]  # [N, C]; not finite if the input was refused
    num_tokens: NDArray[np.int32]  # tokens that the model saw [N], in all windows
    truncated: NDArray[np.bool_]  # whether it saw only part of the input [N]
    refused: dict[int, ItemError]  # position -> why there is no answer
    windows: dict[int, list[tuple[tuple[int, int, int], NDArray[np.float32]]]]
    """Position of a text with several windows -> the characters and logits [C] of each."""


class Pipeline:
    """An encoder and sessions that work together. Any number of threads may use it.

    `max_tokens_per_batch` includes padding; a longer input is a batch of its own. None: by the device.

    Raises:
        InputError: a budget below 1.
    """

    def __init__(
        self, encoder: Encoder, sessions: SessionPool, *, variant: str, max_tokens_per_batch: int | None = None
    ) -> None:
        if max_tokens_per_batch is not None and max_tokens_per_batch < 1:
            raise InputError(f"max_tokens_per_batch {max_tokens_per_batch}: expected 1 or more, or None")
        self.encoder = encoder
        self.sessions = sessions
        self.variant = variant
        self.max_tokens_per_batch = max_tokens_per_batch or TOKENS_PER_BATCH[sessions.device]
        self._process = os.getpid()
        # Their threads start when they are first needed.
        self._workers = ThreadPoolExecutor(sessions.num_workers, "rawloop-run")
        self._tokenizing = ThreadPoolExecutor(1, "rawloop-tokenize")

    def answer(self, inputs: Sequence[TextInput], truncation: Truncation | None = None) -> Answers:
        """Return the answers to a list of inputs.

        Raises:
            ItemError: one of them cannot be encoded; raised for the first, before the model runs.
            InputError: this is a fork of the process that created the pipeline.
        """
        self._require_own_process()
        return self._start(self.encoder.encode(inputs, truncation), is_one_of_many=False).wait()

    def answer_chunks(
        self, chunks: Iterable[Sequence[TextInput]], truncation: Truncation | None = None
    ) -> Generator[Answers, None, None]:
        """Yield the answers to each chunk, in order, working ahead by a few chunks; only bad inputs are refused.

        `chunks` is read in the thread that iterates over the answers.
        """
        self._require_own_process()
        started: deque[Future[_Chunk]] = deque()
        try:
            for chunk in chunks:
                started.append(self._tokenizing.submit(self._start_chunk, chunk, truncation))
                if len(started) > CHUNKS_AHEAD:
                    yield started.popleft().result().wait()
            while started:
                yield started.popleft().result().wait()
        finally:
            for future in started:  # the caller stopped, or a chunk failed
                if not future.cancel():
                    future.add_done_callback(_cancel_chunk)

    def close(self) -> None:
        """Stop the threads after the batches they are running, and close the sessions."""
        self._tokenizing.shutdown(cancel_futures=True)
        self._workers.shutdown(cancel_futures=True)
        self.sessions.close()

    def _require_own_process(self) -> None:
        """Refuse to wait for threads that stayed in the parent."""
        if os.getpid() != self._process:
            raise InputError(
                f"this predictor was created in process {self._process}, and its threads do not survive a fork: create "
                "it in each child (the initializer of a pool, gunicorn's post_fork), or pass it there as an argument: "
                "pickled, it loads anew"
            )

    def _start_chunk(self, inputs: Sequence[TextInput], truncation: Truncation | None) -> "_Chunk":
        return self._start(self.encoder.encode_each(inputs, truncation), is_one_of_many=True)

    def _start(self, outcomes: Sequence[Encoding | ItemError], *, is_one_of_many: bool) -> "_Chunk":
        """Start the model on what was encoded."""
        chunk = _Chunk(outcomes, self.encoder.classifier)
        windows = chunk.windows
        lengths = np.array([window.num_tokens for window in windows], np.int64)
        num_workers = self.sessions.num_workers
        is_short = len(windows) <= max(1, num_workers // 2) and not is_one_of_many
        if is_short:
            if windows:
                chunk.batches.append((np.arange(len(windows)), self._run(self.sessions.wide, windows)))
            return chunk
        # In a stream, the batches of a chunk depend only on the chunk: a job that is resumed with another number of
        # threads repeats them.
        budget = self.max_tokens_per_batch
        if num_workers > 1 and not is_one_of_many and self.sessions.device == "cpu":  # a GPU runs one batch at a time
            budget = min(budget, -(-int(lengths.sum()) // (num_workers * BATCHES_PER_WORKER)))
        session = self.sessions.narrow
        for batch in reversed(length_sorted_batches(lengths, budget, max_rows=len(windows))):
            picked = [windows[index] for index in batch]
            chunk.batches.append((batch, self._workers.submit(self._run, session, picked)))
        return chunk

    def _run(self, session: Session, encodings: list[Encoding]) -> NDArray[np.float32]:
        return session.run(self.encoder.pad(encodings, length_multiple=session.length_multiple))


class _Chunk:
    """Inputs in progress."""

    def __init__(self, outcomes: Sequence[Encoding | ItemError], classifier: Classifier) -> None:
        self._outcomes, self._classifier = outcomes, classifier
        self.windows = windows_of(each for each in outcomes if isinstance(each, Encoding))
        """What the model runs on, in order [M]."""
        self.batches: list[tuple[NDArray[np.int64], Any]] = []
        """Windows of each batch, and its logits or their future."""

    def wait(self) -> Answers:
        """Return the answers once all batches are done."""
        num_labels, num_inputs = len(self._classifier.labels), len(self._outcomes)
        of_windows = np.full((len(self.windows), num_labels), np.nan, np.float32)
        try:
            for windows, batch in self.batches:
                of_windows[windows] = batch.result() if isinstance(batch, Future) else batch
        except BaseException:
            self.cancel()
            raise
        seen = [each.windows if isinstance(each, Encoding) else () for each in self._outcomes]
        num_windows = np.array([len(each) for each in seen], np.int64)
        rows = np.flatnonzero(num_windows)
        logits = np.full((num_inputs, num_labels), np.nan, np.float32)
        logits[rows] = pool(of_windows, num_windows[rows], self._classifier.long_texts.pooling)
        refused = {row: each for row, each in enumerate(self._outcomes) if isinstance(each, ItemError)}
        if not (is_finite := np.isfinite(logits)).all():
            for row in np.flatnonzero(~is_finite.all(axis=1)).tolist():
                refused.setdefault(row, ItemError(row, "the model returned no finite numbers for it"))
        ends = np.cumsum(num_windows)
        several = {}
        for row in np.flatnonzero(num_windows > 1).tolist():
            places = [window.place or (0, 0, 0) for window in seen[row]]
            several[row] = list(zip(places, of_windows[ends[row] - len(places) : ends[row]], strict=True))
        num_tokens = np.array([sum(window.num_tokens for window in each) for each in seen], np.int32)
        truncated = np.array([any(window.truncated for window in each) for each in seen], np.bool_)
        return Answers(logits, num_tokens, truncated, refused, several)

    def cancel(self) -> None:
        """Cancel the batches that have not started."""
        for _, batch in self.batches:
            if isinstance(batch, Future):
                batch.cancel()


def _cancel_chunk(future: "Future[_Chunk]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()


def cut_into_chunks(items: Iterable[T], num_characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield lists with a bounded number of items and, except for the last item, of characters."""
    chunk: list[T] = []
    characters = 0
    for item in items:
        chunk.append(item)
        characters += num_characters(item)
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
