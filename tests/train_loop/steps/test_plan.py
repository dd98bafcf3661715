import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train_loop.steps import plan as plan_module
from train_loop.steps.plan import BatchPlan, cut_step, evaluation_plan

GROUPINGS = ("window", "batch", "none")


@st.composite
def plans(draw):
    num_rows = draw(st.integers(1, 300))
    seed = draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    lengths = random.integers(1, draw(st.sampled_from([2, 40, 512])), num_rows).astype(np.int32)
    weights = random.choice([0.5, 1.0, 7.25], num_rows)
    cut = draw(st.sampled_from([{}, {"num_micro_batches": 1}, {"num_micro_batches": 3}, {"max_tokens": 64}]))
    return {
        "lengths": lengths,
        "weights": weights,
        "batch_size": draw(st.integers(1, 40)),
        "grouping": draw(st.sampled_from(GROUPINGS)),
        "seed": seed,
        "epoch": draw(st.integers(0, 5)),
        **cut,
    }


@given(plans(), st.integers(1, 5))
@settings(max_examples=150)
def test_an_epoch_visits_each_row_exactly_once(arguments, num_processes):
    plan = BatchPlan(**arguments, num_processes=num_processes)
    steps = list(plan)
    visited = np.concatenate([rows for step in steps for process in step.rows for rows in process])
    assert len(steps) == math.ceil(len(arguments["lengths"]) / arguments["batch_size"])
    assert sorted(visited) == list(range(len(arguments["lengths"])))


@given(plans(), st.integers(2, 5))
@settings(max_examples=150)
def test_rows_and_weights_of_a_step_do_not_depend_on_the_processes_or_the_cut(arguments, num_processes):
    whole = {k: v for k, v in arguments.items() if k not in ("num_micro_batches", "max_tokens")}
    for one, many in zip(BatchPlan(**whole), BatchPlan(**arguments, num_processes=num_processes), strict=True):
        rows_of_one = np.concatenate([rows for process in one.rows for rows in process])
        rows_of_many = np.concatenate([rows for process in many.rows for rows in process])
        assert sorted(rows_of_one) == sorted(rows_of_many)
        assert one.weight_sum == many.weight_sum == pytest.approx(arguments["weights"][rows_of_one].sum())


@given(plans(), st.integers(1, 5))
@settings(max_examples=150)
def test_every_process_has_the_same_number_of_micro_batches_within_the_budget(arguments, num_processes):
    lengths = arguments["lengths"]
    for step in BatchPlan(**arguments, num_processes=num_processes):
        assert {len(process) for process in step.rows} == {step.num_micro_batches}
        if "num_micro_batches" in arguments:
            assert step.num_micro_batches == arguments["num_micro_batches"]
        costs = [len(rows) * lengths[rows].max() for process in step.rows for rows in process if len(rows)]
        assert sum(costs) == step.num_padded_tokens >= step.num_tokens
        assert max(costs) == step.largest[1]
        if "max_tokens" in arguments:
            sizes = [len(rows) for process in step.rows for rows in process if len(rows)]
            assert all(cost <= 64 or size == 1 for cost, size in zip(costs, sizes, strict=True))


def fewest_runs(lengths: list[int], max_tokens: int) -> int:
    """Return the fewest runs within the budget, by trying every position of the last cut."""
    fewest = [0]
    for end in range(1, len(lengths) + 1):
        fits = (s for s in range(end) if end - s == 1 or (end - s) * max(lengths[s:end]) <= max_tokens)
        fewest.append(1 + min(fewest[start] for start in fits))
    return fewest[-1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 120), st.integers(1, 4))
@settings(max_examples=300)
def test_a_step_takes_no_more_passes_than_the_budget_requires(lengths, max_tokens, num_processes):
    step = cut_step(np.arange(len(lengths)), np.array(lengths), max_tokens=max_tokens, num_processes=num_processes)
    assert step.num_micro_batches == math.ceil(fewest_runs(lengths, max_tokens) / num_processes)
    assert all(num_rows * width <= max_tokens or num_rows == 1 for num_rows, width in step.sizes)


def padded_sizes(widths: list[int], bounds: list[tuple[int, int]]) -> list[int]:
    return [(end - start) * max(widths[start:end]) for start, end in bounds]


def greedy_cut(widths: list[int], size: int) -> list[tuple[int, int]]:
    """Return runs of at most `size` padded tokens, row by row; a larger row is a run."""
    bounds, start = [], 0
    for row in range(1, len(widths) + 1):
        if row == len(widths) or (row + 1 - start) * max(widths[start : row + 1]) > size:
            bounds.append((start, row))
            start = row
    return bounds


def smallest_cut(widths: list[int], num_runs: int) -> list[tuple[int, int]]:
    """Return at most `num_runs` runs with the smallest largest padded size, by trying every size."""
    size = max(widths)
    while len(bounds := greedy_cut(widths, size)) > num_runs:
        size += 1
    return bounds


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30),
    st.booleans(),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 200)),
)
@settings(max_examples=300)
def test_a_step_is_cut_like_row_by_row(lengths, is_sorted, num_processes, max_tokens):
    """Finding the ends of runs at once gives the cuts of the slow and obvious way."""
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    count = 1 if max_tokens is None else math.ceil(len(greedy_cut(lengths, max_tokens)) / num_processes)
    bounds = smallest_cut(lengths, num_processes * count)
    if max_tokens is not None and any(
        size > max_tokens and end - start > 1
        for (start, end), size in zip(bounds, padded_sizes(lengths, bounds), strict=True)
    ):
        bounds = greedy_cut(lengths, max_tokens)
    step = cut_step(np.arange(len(lengths)), np.array(lengths), max_tokens=max_tokens, num_processes=num_processes)
    found = sorted((int(rows[0]), int(rows[-1]) + 1) for process in step.rows for rows in process if len(rows))
    assert max(padded_sizes(lengths, found)) == max(padded_sizes(lengths, bounds))
    assert len(found) >= len(bounds)
    assert all(len(process) == count for process in step.rows)
    assert step.sizes == tuple((end - start, max(lengths[start:end])) for start, end in found)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_large_steps_are_cut_in_few_operations(grouping):
    """A step of many rows takes as many searches as it has runs, times the digits of a size."""
    searches = []

    class Counted(plan_module.RowWidths):
        def end_of_run(self, start, size):
            searches.append(start)
            return super().end_of_run(start, size)

    lengths = np.random.default_rng(0).integers(4, 512, 40_000)
    plan = BatchPlan(lengths, np.ones(40_000), batch_size=8192, num_processes=8, grouping=grouping)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "RowWidths", Counted)
        plan.step(0)
    assert 8 <= len(searches) <= 9 * 22


@given(plans(), st.integers(1, 4), st.integers(1, 2000))
@settings(max_examples=100)
def test_evaluation_visits_each_row_once_on_equal_numbers_of_passes(arguments, num_processes, max_tokens):
    steps = evaluation_plan(arguments["lengths"], num_processes=num_processes, max_tokens=max_tokens)
    rows = np.concatenate([rows for step in steps for process in step.rows for rows in process])
    assert sorted(rows) == list(range(len(arguments["lengths"])))
    assert all(len({len(process) for process in step.rows}) == 1 for step in steps)


def test_the_order_depends_only_on_seed_and_epoch():
    lengths, weights = np.arange(1, 101), np.ones(100)
    settings_ = {"batch_size": 8, "grouping": "window"}

    def order(seed, epoch, num_processes=1):
        plan = BatchPlan(lengths, weights, **settings_, seed=seed, epoch=epoch, num_processes=num_processes)
        return [plan.rows_of_step(index).tolist() for index in range(len(plan))]

    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    first = order(3, 0)
    np.random.seed(2)  # noqa: NPY002
    assert order(3, 0) == first == order(3, 0, num_processes=4)
    assert order(3, 1) != first != order(4, 0)


def test_windows_remove_nearly_all_padding():
    lengths = np.random.default_rng(0).integers(5, 60, 4000)
    share = {}
    for grouping in GROUPINGS:
        steps = list(BatchPlan(lengths, np.ones(4000), batch_size=16, grouping=grouping))
        share[grouping] = 1 - sum(s.num_tokens for s in steps) / sum(s.num_padded_tokens for s in steps)
    assert share["window"] < 0.05 < 0.3 < share["none"]


def test_batch_grouping_draws_unbiased_batches():
    """The mean length of a random batch varies like that of random rows; that of a window batch does not."""
    lengths = np.random.default_rng(0).integers(5, 60, 4000)
    spread = {}
    for grouping in ("batch", "window"):
        plan = BatchPlan(lengths, np.ones(4000), batch_size=16, grouping=grouping)
        spread[grouping] = np.std([lengths[plan.rows_of_step(index)].mean() for index in range(len(plan))])
    expected = lengths.std() / 4
    assert spread["batch"] == pytest.approx(expected, rel=0.2)
    assert spread["window"] > 2 * expected


def test_the_short_last_step_holds_random_rows():
    """If leftovers were sorted with the rest, they would always be the shortest."""
    lengths = np.arange(1, 107)
    means = [
        lengths[
            (plan := BatchPlan(lengths, np.ones(106), batch_size=10, epoch=epoch)).rows_of_step(len(plan) - 1)
        ].mean()
        for epoch in range(200)
    ]
    assert np.mean(means) == pytest.approx(lengths.mean(), rel=0.1)


def test_token_loads_of_processes_are_balanced():
    lengths = np.random.default_rng(1).integers(4, 120, 2000)
    plan = BatchPlan(lengths, np.ones(2000), batch_size=64, num_processes=4, grouping="batch", num_micro_batches=2)
    ratios = []
    for step in list(plan)[:-1]:
        loads = [sum(len(rows) * lengths[rows].max() for rows in process) for process in step.rows]
        ratios.append(max(loads) / np.mean(loads))
    assert np.mean(ratios) < 1.1


def test_a_finer_cut_keeps_the_rows_of_the_step():
    lengths = np.full(64, 10)
    plan = BatchPlan(lengths, np.ones(64), batch_size=32, num_micro_batches=1)
    whole, cut = plan.step(0), plan.step(0, max_tokens=50)
    assert whole.num_micro_batches == 1
    assert cut.num_micro_batches == 7  # at most 5 rows of 10 tokens each
    assert sorted(np.concatenate(cut.rows[0])) == sorted(np.concatenate(whole.rows[0]))


def test_a_row_over_the_budget_gets_its_own_micro_batch():
    step = cut_step(np.arange(3), np.array([500, 10, 10]), max_tokens=100)
    assert [rows.tolist() for rows in step.rows[0]] == [[0], [1, 2]]
