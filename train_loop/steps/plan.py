"""Which rows go into which optimizer step, process and micro-batch. Pure numpy, no communication.

Every process computes the same plan from (lengths, weights, batch size, grouping, seed, epoch). Which
rows share an optimizer step depends only on these; how a step is then cut over processes and
micro-batches changes speed and memory, never what is learned (promise T1).
"""

import dataclasses
import heapq
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from train_loop.config import LengthGrouping
from train_loop.rows.flat_tokens import within

Rows = NDArray[np.int64]
Run = tuple[int, int]  # a micro-batch: rows[start:end] of its step

WINDOW_BATCHES = 50
"""Batches per window of similar lengths: enough to remove nearly all padding, few enough to stay random."""


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """One optimizer step: `rows[p][m]` are the rows of process p's micro-batch m, [B_pm] int64.

    Where long texts are read in windows, these are windows instead, numbered in the order of the rows.

    Every process has the same number of micro-batches, because under DDP each backward pass is a
    collective; if there are too few rows, some micro-batches are empty.
    """

    rows: tuple[tuple[Rows, ...], ...]
    weight_sum: float  # sum of the class weights of the step's rows: the exact denominator of its loss
    num_rows: int  # rows of the step, however many windows they have
    num_tokens: int  # real tokens, padding excluded
    sizes: tuple[tuple[int, int], ...]
    """(rows, tokens per padded row) of every non-empty micro-batch, of all processes."""

    @property
    def num_micro_batches(self) -> int:
        return len(self.rows[0])

    @property
    def num_padded_tokens(self) -> int:
        """Tokens computed, padding included."""
        return sum(num_rows * width for num_rows, width in self.sizes)

    @property
    def largest(self) -> tuple[int, int]:
        """(rows, padded tokens) of the micro-batch with the most tokens."""
        return max(((num_rows, num_rows * width) for num_rows, width in self.sizes), key=lambda size: size[1])


@dataclasses.dataclass(eq=False)
class BatchPlan:
    """The optimizer steps of one epoch."""

    lengths: NDArray[np.integer]  # tokens of each training row [N]
    weights: NDArray[np.floating]  # each row's share of the denominator of the loss [N]
    _: dataclasses.KW_ONLY
    batch_size: int  # rows per optimizer step, over all processes together
    num_processes: int = 1
    grouping: LengthGrouping = "window"
    """window sorts by length within windows of 50 batches, then shuffles the batches; batch draws batches at random
    and sorts only within them (unbiased); none does not sort."""
    seed: int = 0
    epoch: int = 0
    widths: NDArray[np.integer] | None = None
    """Tokens of each window with lengths rounded up for the hardware [M]; None: `lengths`."""
    num_windows: NDArray[np.integer] | None = None
    """Windows of each row [N], M in all; None: one each. A step has all windows of its rows."""
    window_lengths: NDArray[np.integer] | None = None  # tokens of each window [M]; needed with `num_windows`
    num_micro_batches: int | None = None  # per process and step
    max_tokens: int | None = None
    """Most tokens of a micro-batch, padding included, unless it is a single longer row."""

    def __post_init__(self) -> None:
        if self.num_windows is not None:
            self._first_windows = np.cumsum(self.num_windows) - self.num_windows
        self._order, self._batch_order = _draw_order(
            self.lengths, self.batch_size, self.grouping, self.seed, self.epoch
        )

    def __len__(self) -> int:
        """Optimizer steps of the epoch; the last may have fewer rows."""
        return math.ceil(len(self._order) / self.batch_size)

    def __iter__(self) -> Iterator[StepPlan]:
        return (self.step(index) for index in range(len(self)))

    def rows_of_step(self, index: int) -> Rows:
        """Return the rows of step `index` [<= batch_size], in the order in which they are cut."""
        # Full batches are shuffled; the leftover rows come last.
        batch = int(self._batch_order[index]) if index < len(self._batch_order) else index
        rows = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        if self.grouping == "none":
            return rows
        return rows[np.argsort(-self.lengths[rows].astype(np.int64), kind="stable")]

    def step(self, index: int, max_tokens: int | None = None) -> StepPlan:
        """Return step `index` of the epoch; `max_tokens` cuts finer than the plan's own limit."""
        rows, lengths = self.rows_of_step(index), self.lengths
        windows = rows
        if self.num_windows is not None and self.window_lengths is not None:
            lengths = self.window_lengths
            of_row, places = within(self.num_windows[rows])
            windows = self._first_windows[rows][of_row] + places
            if self.grouping != "none":
                windows = windows[np.argsort(-lengths[windows].astype(np.int64), kind="stable")]
        limit = max_tokens if max_tokens is not None else self.max_tokens
        step = cut_step(
            windows,
            lengths,
            widths=self.widths,
            weight_sum=math.fsum(self.weights[rows].tolist()),
            num_processes=self.num_processes,
            num_micro_batches=self.num_micro_batches if max_tokens is None else None,
            max_tokens=limit,
        )
        return dataclasses.replace(step, num_rows=len(rows))


def evaluation_plan(
    lengths: NDArray[np.integer], *, num_processes: int, max_tokens: int, rows_per_step: int = 2048
) -> list[StepPlan]:
    """Return steps that visit every row once, for forward passes only.

    The longest rows come first, so that a lack of memory shows at once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    parts = (order[start : start + rows_per_step] for start in range(0, len(order), rows_per_step))
    return [cut_step(part, lengths, num_processes=num_processes, max_tokens=max_tokens) for part in parts]


def cut_step(
    rows: Rows,
    lengths: NDArray[np.integer],
    *,
    widths: NDArray[np.integer] | None = None,
    weight_sum: float = 0.0,
    num_processes: int = 1,
    num_micro_batches: int | None = None,
    max_tokens: int | None = None,
) -> StepPlan:
    """Cut the rows of one step into the same number of micro-batches on each process.

    Micro-batches are runs of `rows` in the order given, cut to minimize the largest padded run. With
    `max_tokens`, there are as few as possible within it; a longer row gets its own.
    """
    row_widths = RowWidths((lengths if widths is None else widths)[rows].astype(np.int64))
    longest = [] if max_tokens is None else _greedy_runs(row_widths, max_tokens)
    count = max(num_micro_batches or 1, math.ceil(len(longest) / num_processes))
    bounds = _cut_evenly(row_widths, num_processes * count)
    if max_tokens and any(row_widths.cost(*run) > max_tokens and run[1] - run[0] > 1 for run in bounds):
        # A single row exceeds the budget, and an even cut lets the other runs grow to its size.
        bounds = longest + [(len(rows), len(rows))] * (num_processes * count - len(longest))

    runs = [rows[start:end] for start, end in bounds]
    costs = [row_widths.cost(start, end) for start, end in bounds]
    return StepPlan(
        rows=tuple(tuple(runs[run] for run in share) for share in _deal(costs, num_processes, count)),
        weight_sum=weight_sum,
        num_rows=len(rows),
        num_tokens=int(lengths[rows].sum(dtype=np.int64)),
        sizes=tuple((len(run), cost // len(run)) for run, cost in zip(runs, costs, strict=True) if len(run)),
    )


def _draw_order(
    lengths: NDArray[np.integer], batch_size: int, grouping: LengthGrouping, seed: int, epoch: int
) -> tuple[Rows, Rows]:
    """Return the order of all rows [N] and the order of the full batches cut from it [N // batch_size]."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    num_full = len(order) // batch_size
    if grouping != "window":
        return order, np.arange(num_full)
    window_rows = WINDOW_BATCHES * batch_size
    # Leftover rows stay in random order: if sorted, the short last step would always get the shortest rows.
    for start in range(0, num_full * batch_size, window_rows):
        window = order[start : min(start + window_rows, num_full * batch_size)]
        window[:] = window[np.argsort(-lengths[window].astype(np.int64), kind="stable")]
    return order, random.permutation(num_full)


class RowWidths:
    """The padded lengths of a step's rows [N], in order, and what runs of them cost."""

    def __init__(self, values: NDArray[np.int64]) -> None:
        self.values = values
        self._is_sorted = not (values[1:] > values[:-1]).any()

    def __len__(self) -> int:
        return len(self.values)

    def cost(self, start: int, end: int) -> int:
        """Return the padded tokens of the micro-batch of rows start:end."""
        if end == start:
            return 0
        return (end - start) * int(self.values[start] if self._is_sorted else self.values[start:end].max())

    def end_of_run(self, start: int, size: int) -> int:
        """Return the end of the longest run from a row on whose padded size is at most `size`; it has one row at least.

        If all rows were as wide as the first it would end at `most`, and where they are sorted it does.
        """
        first = int(self.values[start])
        most = min(len(self), start + max(1, size // first)) if first else len(self)
        if self._is_sorted:
            return most
        widest = np.maximum.accumulate(self.values[start:most])
        sizes = widest * np.arange(1, len(widest) + 1)  # of the runs of 1, 2, 3 ... rows
        return start + max(1, int(sizes.searchsorted(size, side="right")))


def _cut_evenly(row_widths: RowWidths, num_runs: int) -> list[Run]:
    """Cut into `num_runs` runs, minimizing the largest padded size by bisection; some may be empty."""
    num_rows = len(row_widths)
    if num_rows <= num_runs:
        bounds = [(row, row + 1) for row in range(num_rows)]
        return bounds + [(num_rows, num_rows)] * (num_runs - num_rows)
    best: list[Run] = [(0, num_rows)]
    widest = int(row_widths.values.max())
    # No cut is better than one without padding, and runs with the same number of rows always fit.
    low, high = max(widest, -(-int(row_widths.values.sum()) // num_runs)), -(-num_rows // num_runs) * widest
    while low <= high and num_runs > 1:
        size = (low + high) // 2
        runs = _greedy_runs(row_widths, size, num_runs)
        if len(runs) > num_runs:
            low = size + 1
        else:
            best, high = runs, max(row_widths.cost(*run) for run in runs) - 1
    return best + [(num_rows, num_rows)] * (num_runs - len(best))


def _greedy_runs(row_widths: RowWidths, size: int, most: int | None = None) -> list[Run]:
    """Return the fewest runs of padded size at most `size`, extending each as far as it goes; a larger row is a run.

    Stops early, with too many runs, once there are more than `most`.
    """
    bounds: list[Run] = []
    start = 0
    while start < len(row_widths) and (most is None or len(bounds) <= most):
        end = row_widths.end_of_run(start, size)
        bounds.append((start, end))
        start = end
    return bounds


def _deal(costs: list[int], num_processes: int, count: int) -> list[list[int]]:
    """Deal runs to processes, `count` each, balancing their loads; the largest runs come first.

    Each run goes to the least loaded process that has room (longest processing time first).
    """
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [(0, process) for process in range(num_processes)]  # a heap of those with room
    for run in sorted(range(len(costs)), key=lambda run: -costs[run]):
        load, process = loads[0]
        shares[process].append(run)
        if len(shares[process]) < count:
            heapq.heapreplace(loads, (load + costs[run], process))
        else:
            heapq.heappop(loads)
    return shares
