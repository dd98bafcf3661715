"""Serving on a GPU: the answers of the CPU, and memory that does not grow."""

import csv
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from labelled_rows import labelled_rows

from serve import Predictor
from serve.contract.bundle import read_bundle
from serve.providers import GpuOptions
from serve.session import Session


def some_texts() -> list[str]:
    """Return texts that the bundle's model knows."""
    if "RAWLOOP_BUNDLE" not in os.environ:
        return [text for text, _ in labelled_rows(500)]
    with (Path(__file__).parents[2] / "recipes" / "support_tickets.csv").open(encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)][:500]


TEXTS = some_texts()


def logits_of(bundle: Path, device: str, variant: str, **options: bool) -> np.ndarray:
    with Predictor(bundle, device=device, variant=variant, **options) as predictor:  # type: ignore[arg-type]
        return np.array([prediction.logits for prediction in predictor(TEXTS)])


@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 1e-3), ("fp16", 0.02)])
def test_answers_are_those_of_the_cpu(bundle: Path, device: str, variant: str, tolerance: float) -> None:
    expected, found = logits_of(bundle, "cpu", variant), logits_of(bundle, device, variant)
    agreement = (expected.argmax(1) == found.argmax(1)).mean()
    print(f"{device} {variant}: {agreement:.2%} of labels, largest difference {np.abs(expected - found).max():.2e}")
    assert agreement >= 0.995
    assert np.abs(expected - found).max() < tolerance


def test_replayed_graphs_answer_alike(bundle: Path, cuda: str) -> None:
    plain = logits_of(bundle, cuda, "fp16")
    replayed = logits_of(bundle, cuda, "fp16", cuda_graphs=True)
    assert np.abs(plain - replayed).max() < 0.02


def test_memory_stays_flat_over_2000_shapes(bundle: Path, cuda: str) -> None:
    if importlib.util.find_spec("pynvml") is None:
        pytest.skip("needs nvidia-ml-py")
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    description = read_bundle(bundle)
    longest, inputs_of = min(128, description.classifier.max_length), description.manifest.input_names
    session = Session(description.graph("fp16"), GpuOptions(device="cuda"))
    random, used = np.random.default_rng(0), []
    for number in range(2_000):
        shape = (int(random.integers(1, 65)), int(random.integers(4, longest + 1)))
        ids = random.integers(5, 50, shape)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        session.run({name: inputs[name] for name in inputs_of})
        if number % 100 == 99:
            used.append(pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20)
    print("MiB in use, every 100 shapes:", [round(value) for value in used])
    assert used[-1] - used[4] < 64
