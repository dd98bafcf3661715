"""Passes recorded once and replayed: the same numbers as passes run one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from labelled_rows import labelled_rows
from torch import Tensor

from serve.contract.errors import InputError
from train_loop import loop
from train_loop.run.checkpoint import TrainState
from train_loop.steps import graphs
from train_loop.steps.graphs import WIDTH_MULTIPLE, PassGraphs


class FakeCapture:
    """As `CudaCapture`: recording does no work, and each replay overwrites the output."""

    def __init__(self) -> None:
        self.num_run = self.num_recorded = self.num_replayed = 0

    def has_room(self) -> bool:
        return True

    def clear(self) -> None:
        pass

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        self.num_run += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self.num_recorded += 1
        output = torch.full((), torch.nan)

        def replay() -> None:
            self.num_replayed += 1
            output.copy_(work())

        return replay, output


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    return [
        f"--model_name={tiny_model}",
        f"--train_file={write_rows(labelled_rows(60), 'train.csv')}",
        f"--output_dir={tmp_path / 'runs'}",
        "--test_fraction=0",
        "--epochs=2",
        "--batch_size=8",
        "--max_tokens_per_forward=64",
    ]


def weights_after(argv: list[str], name: str, capture: FakeCapture | None) -> dict[str, Tensor]:
    from distributed import build

    training = build([*argv, f"--run_name={name}"])
    training.pad_to_multiple_of = WIDTH_MULTIPLE
    training.collate = training.collator(training.data.train)
    if capture is not None:
        training.graphs = PassGraphs([p for p in training.model.parameters() if p.requires_grad], capture)  # type: ignore[arg-type]
    loop.train(training, TrainState())
    return {name: parameter.detach().clone() for name, parameter in training.model.named_parameters()}


def test_replayed_passes_train_the_same_weights(argv: list[str]) -> None:
    capture = FakeCapture()
    plain, replayed = weights_after(argv, "plain", None), weights_after(argv, "replayed", capture)
    assert capture.num_recorded >= 1
    assert capture.num_replayed > 2 * capture.num_run
    assert all(torch.equal(plain[name], replayed[name]) for name in plain)


def test_large_passes_are_not_recorded(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_TOKENS", 32)
    capture = FakeCapture()
    weights_after([*argv, "--max_tokens_per_forward=128"], "large", capture)  # 8 rows of 16 tokens
    assert capture.num_recorded == 0 < capture.num_run


def test_without_room_and_after_a_lack_of_memory_nothing_is_replayed(argv: list[str]) -> None:
    capture = FakeCapture()
    capture.has_room = lambda: False  # type: ignore[method-assign]
    weights_after(argv, "full", capture)
    assert capture.num_recorded == 0 < capture.num_run
    kept = PassGraphs([], FakeCapture())  # type: ignore[arg-type]
    kept._graphs[0] = object()  # type: ignore[assignment]
    kept.clear()
    assert not kept._graphs


def test_the_default_is_what_ran_on_a_gpu() -> None:
    assert graphs.is_default("bert", "bf16", is_one_process=True, omits_masks=True)
    assert graphs.is_default("bert", "no", is_one_process=True, omits_masks=True)
    for changed in (
        {"model_type": "xlnet"},
        {"mixed_precision": "fp16"},
        {"is_one_process": False},
        {"omits_masks": False},
    ):
        proved: dict[str, Any] = {
            "model_type": "bert",
            "mixed_precision": "bf16",
            "is_one_process": True,
            "omits_masks": True,
        }
        assert not graphs.is_default(**proved | changed)


def test_a_pass_that_cannot_be_recorded_names_the_flag(argv: list[str]) -> None:
    class Waits(FakeCapture):
        def record(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(InputError, match=r"--cuda_graphs .* a pass .* cannot be recorded.*--cuda_graphs false"):
        weights_after(argv, "waits", Waits())
