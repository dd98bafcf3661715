import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from train_loop.rows.flat_tokens import FlatTokens
from train_loop.rows.split import Split
from train_loop.steps.feed import Collator, MicroBatch, StepFeed, to_device
from train_loop.steps.plan import BatchPlan, StepPlan

ROWS = [[2, 10, 3], [2, 11, 12, 13, 14, 3], [2, 15, 3, 16, 17, 3], [2, 3], [2, 18, 19, 20, 21, 22, 23, 24, 3]]
MAX_LENGTH = 64
TYPES = [[0, 0, 0], [0] * 6, [0, 0, 0, 1, 1, 1], [0, 0], [0] * 9]


def split_of(rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None) -> Split:
    """Return a split of tokens, labelled 0, 1, 2, 0, ..., with the types that `data.py` writes."""
    columns = {"input_ids": rows} | ({} if types is None else {"token_type_ids": types})
    features = {"input_ids": datasets.Sequence(datasets.Value("int32"))}
    if types is not None:
        features["token_type_ids"] = datasets.Sequence(datasets.Value("int8"))
    num_rows = len(rows)
    return Split(
        name="train",
        origin="here",
        rows=datasets.Dataset.from_dict({"text": [""] * num_rows}),
        tokens=datasets.Dataset.from_dict(columns, features=datasets.Features(features)),
        num_windows=np.ones(num_rows, np.int32),
        labels=np.arange(num_rows) % 3,
        lengths=np.array([len(row) for row in rows], np.int32),
        truncated=np.zeros(num_rows, np.bool_),
        text_hashes=np.arange(num_rows),
        source_rows=np.arange(num_rows),
    )


def assert_same(found: Sequence[MicroBatch], expected: Sequence[MicroBatch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        assert one.is_filler == other.is_filler
        assert one.inputs.keys() == other.inputs.keys()
        for name in one.inputs:
            assert torch.equal(one.inputs[name], other.inputs[name])
        assert torch.equal(one.labels, other.labels)


# Padding


def test_rows_are_padded_on_the_right_to_the_longest_of_them() -> None:
    batch = Collator(split_of(ROWS, TYPES), tiny_tokenizer("bert"), MAX_LENGTH)(np.array([2, 0]))
    assert batch.inputs["input_ids"].tolist() == [[2, 15, 3, 16, 17, 3], [2, 10, 3, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [2, 0]
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels)} == {torch.int64}
    assert not batch.is_filler


def test_rows_of_xlnet_are_padded_on_the_left() -> None:
    tokenizer = tiny_tokenizer("xlnet")
    tokenizer._pad_token_type_id = 3  # as XLNet's own tokenizer class sets it
    batch = Collator(split_of(ROWS, TYPES), tokenizer, MAX_LENGTH)(np.array([3, 0]))
    assert batch.inputs["input_ids"].tolist() == [[0, 2, 3], [2, 10, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert batch.inputs["token_type_ids"].tolist() == [[3, 0, 0], [0, 0, 0]]


def test_padding_is_the_tokenizers_token_and_token_types_are_optional() -> None:
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.pad_token = "[MASK]"
    batch = Collator(split_of(ROWS), tokenizer, MAX_LENGTH)(np.array([3, 0]))
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    assert batch.inputs["input_ids"].tolist() == [[2, 3, 4], [2, 10, 3]]


@pytest.mark.parametrize(("rows", "width"), [([0, 3], 8), ([4], 16)])
@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_lengths_are_rounded_up_to_the_multiple(rows: list[int], width: int, architecture: str) -> None:
    batch = Collator(split_of(ROWS, TYPES), tiny_tokenizer(architecture), MAX_LENGTH, pad_to_multiple_of=8)(
        np.array(rows)
    )
    for tensor in batch.inputs.values():
        assert tensor.shape == (len(rows), width)
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [len(ROWS[row]) for row in rows]


def test_no_width_exceeds_the_models_limit() -> None:
    collate = Collator(split_of(ROWS), tiny_tokenizer(), max_length=10, pad_to_multiple_of=8)
    assert collate.widths.tolist() == [8, 8, 8, 8, 10]
    assert collate(np.array([4, 0])).inputs["input_ids"].shape == (2, 10)


@pytest.mark.parametrize("max_tokens", [40, 64, 200])
def test_the_plan_counts_the_tokens_that_are_computed(max_tokens: int) -> None:
    """The budget holds for what the device computes, with lengths rounded up to the multiple."""
    lengths = np.random.default_rng(0).integers(2, 30, 60)
    split = split_of([[5] * length for length in lengths])
    collate = Collator(split, tiny_tokenizer(), MAX_LENGTH, pad_to_multiple_of=8)
    plan = BatchPlan(split.lengths, np.ones(60), batch_size=32, widths=collate.widths, max_tokens=max_tokens)
    for step in plan:
        computed = [collate(rows).inputs["input_ids"].numel() for rows in step.rows[0] if len(rows)]
        assert sum(computed) == step.num_padded_tokens
        assert max(computed) == step.largest[1] <= max_tokens
        assert step.num_tokens == sum(split.lengths[rows].sum() for rows in step.rows[0])


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_only_padded_micro_batches_have_a_mask_if_asked(architecture: str) -> None:
    always = Collator(split_of(ROWS, TYPES), tiny_tokenizer(architecture), MAX_LENGTH)
    padded = Collator(split_of(ROWS, TYPES), tiny_tokenizer(architecture), MAX_LENGTH, omit_masks=True)
    for rows, has_mask in (([1, 2], False), ([4], False), ([1, 3], True), ([], False)):
        full, found = always(np.array(rows, np.int64)), padded(np.array(rows, np.int64))
        assert ("attention_mask" in found.inputs) == has_mask
        assert found.inputs.keys() | {"attention_mask"} == full.inputs.keys()
        for name, values in found.inputs.items():
            assert torch.equal(values, full.inputs[name])
        assert torch.equal(found.labels, full.labels)
        assert has_mask or full.inputs["attention_mask"].all()


def test_a_row_without_tokens_is_all_padding() -> None:
    batch = Collator(split_of([[], [7, 8], []]), tiny_tokenizer(), MAX_LENGTH)(np.array([0, 1, 2]))
    assert batch.inputs["input_ids"].tolist() == [[0, 0], [7, 8], [0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("in_memory", [False, True])
def test_tokens_in_many_pieces_are_found_without_a_copy(tmp_path: Path, in_memory: bool) -> None:
    """As `datasets` writes them: record batches in one file, or side by side in memory, with rows selected."""
    lengths = np.random.default_rng(0).integers(0, 9, 300)
    rows = [[1000 * row + place for place in range(length)] for row, length in enumerate(lengths)]
    whole = split_of(rows, [[row % 5] * length for row, length in enumerate(lengths)])
    whole.tokens.save_to_disk(tmp_path / "tokens")
    saved = datasets.load_from_disk(tmp_path / "tokens")
    written = saved.map(lambda row: row, writer_batch_size=20, keep_in_memory=in_memory)
    assert written.data.column("input_ids").num_chunks == 15
    kept = np.random.default_rng(1).permutation(300)[:200]
    split = dataclasses.replace(whole, tokens=written).take(kept, name="train", origin="cut")
    flat = FlatTokens(split.tokens)
    for row in range(200):
        places = np.arange(lengths[kept[row]])
        assert flat.gather("input_ids", np.array([row]), places)[0].tolist() == rows[kept[row]]
        assert set(flat.gather("token_type_ids", np.array([row]), places)[0].tolist()) <= {kept[row] % 5}
    values = flat._columns["input_ids"][0]
    assert not values.flags.owndata
    assert not values.flags.writeable


def test_no_rows_make_a_filler_that_a_model_accepts() -> None:
    batch = Collator(split_of(ROWS, TYPES), tiny_tokenizer(), MAX_LENGTH)(np.empty(0, np.int64))
    assert batch.is_filler
    assert batch.inputs["input_ids"].tolist() == [ROWS[0]]
    assert batch.labels.tolist() == [0]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=12),
    data=st.data(),
    left=st.booleans(),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_the_mask_selects_the_original_rows(lengths: list[int], data: st.DataObject, left: bool, multiple: int) -> None:
    tokens = [[5 + row, *range(100, 99 + length)] for row, length in enumerate(lengths)]
    split = split_of(tokens)
    # A cut split is a view of the tokens through indices.
    kept = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True)))
    rows = np.array(data.draw(st.lists(st.integers(0, len(kept) - 1), min_size=1, max_size=8)))
    tokenizer = tiny_tokenizer("xlnet" if left else "bert")
    batch = Collator(split.take(kept, name="test", origin="cut"), tokenizer, MAX_LENGTH, multiple)(rows)
    for ids, mask, row in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], rows, strict=True):
        assert ids[mask.bool()].tolist() == tokens[kept[row]]
        assert not ids[~mask.bool()].any()
        assert (mask.sort(descending=not left).values == mask).all()  # on one side only
    assert batch.labels.tolist() == split.labels[kept][rows].tolist()


# The feed


@pytest.fixture
def collate() -> Collator:
    random = np.random.default_rng(0)
    return Collator(
        split_of([[2, *range(5, 5 + random.integers(20)), 3] for _ in range(50)]), tiny_tokenizer(), MAX_LENGTH
    )


def plan_of(collate: Collator, **fields: int | None) -> BatchPlan:
    return BatchPlan(collate.widths, np.ones(50), batch_size=8, **fields)


@pytest.mark.parametrize("process", [0, 1])
def test_building_ahead_equals_building_now(collate: Collator, process: int) -> None:
    plan = plan_of(collate, num_processes=2, max_tokens=40)
    with StepFeed(collate, process) as feed:
        for step in range(len(plan)):
            step_plan, batches = feed.take(step, plan.step, last=step + 1 == len(plan))
            assert step_plan.num_rows == plan.step(step).num_rows
            assert_same(batches, [collate(rows) for rows in plan.step(step).rows[process]])


def test_steps_may_be_taken_out_of_order(collate: Collator) -> None:
    plan = plan_of(collate)
    with StepFeed(collate, 0) as feed:
        for step in (0, 3, 4, 2, 2):
            assert_same(feed.take(step, plan.step, last=False)[1], feed.build(plan.step(step))[1])


def test_the_next_step_is_built_while_this_one_runs(collate: Collator) -> None:
    plan = plan_of(collate)
    asked: list[tuple[int, str]] = []
    ready = threading.Event()

    def step(index: int) -> StepPlan:
        asked.append((index, threading.current_thread().name.partition("_")[0]))
        if index == 1:
            ready.set()
        return plan.step(index)

    with StepFeed(collate, 0) as feed:
        feed.take(0, step, last=False)
        assert ready.wait(timeout=10)
        feed.take(1, step, last=True)
    assert asked == [(0, "MainThread"), (1, "rawloop-feed")]


def test_discard_drops_what_was_built_ahead(collate: Collator) -> None:
    first, second = plan_of(collate, epoch=0), plan_of(collate, epoch=1)
    with StepFeed(collate, 0) as feed:
        feed.take(0, first.step, last=False)
        feed.discard()
        found = feed.take(1, second.step, last=True)[1]
    assert_same(found, [collate(rows) for rows in second.step(1).rows[0]])


def test_an_error_while_building_ahead_is_raised_when_the_step_is_taken(collate: Collator) -> None:
    plan = plan_of(collate)

    def step(index: int) -> StepPlan:
        if index == 1:
            raise OSError("the token file is gone")
        return plan.step(index)

    with StepFeed(collate, 0) as feed:
        feed.take(0, step, last=False)
        with pytest.raises(OSError, match="the token file is gone"):
            feed.take(1, step, last=True)


def test_no_thread_is_left_after_the_feed(collate: Collator) -> None:
    with StepFeed(collate, 0) as feed:
        feed.take(0, plan_of(collate).step, last=False)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rawloop-feed")]


def test_a_cpu_takes_micro_batches_unchanged(collate: Collator) -> None:
    batch = collate(np.array([1, 2]))
    (moved,) = to_device([batch], torch.device("cpu"))
    assert moved is batch


class CountedCopies(TorchDispatchMode):
    """Counts the copies to another device."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))


def test_another_device_gets_all_tensors_in_one_copy(collate: Collator) -> None:
    with CountedCopies() as copies:
        (moved,) = to_device([collate(np.empty(0, np.int64))], torch.device("meta"))
    assert copies.number == 1
    assert {tensor.device.type for tensor in (*moved.inputs.values(), moved.labels)} == {"meta"}
    assert moved.is_filler


def test_micro_batches_for_cuda_are_built_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One allocation each, from torch's allocator of pinned memory; none of tensors built before."""
    asked: list[bool] = []
    empty = torch.empty

    def counted(*arguments: Any, pin_memory: bool, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)
    split = split_of(ROWS, TYPES)
    batches = [Collator(split, tiny_tokenizer(), MAX_LENGTH, pinned=pinned)(np.arange(4)) for pinned in (True, False)]
    assert asked == [True, False]
    assert_same(batches[:1], batches[1:])
