"""The tests of a GPU: skipped without one. REHEARSE_GPU=1 runs on the CPU what can run there."""

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, reason = Path(__file__).parent, _why_not()
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_not() -> str:
    is_rehearsal = bool(os.environ.get("REHEARSE_GPU"))
    return "" if is_rehearsal or torch.cuda.is_available() else "needs a GPU (REHEARSE_GPU=1 runs it on the CPU)"


@pytest.fixture(scope="session")
def device() -> str:
    """Return cuda, or cpu in a rehearsal."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def cuda(device: str) -> str:
    """Return cuda; skip the test in a rehearsal."""
    if device != "cuda":
        pytest.skip("only a GPU has it")
    return device


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with fp32 and fp16: $RAWLOOP_BUNDLE, or a tiny one, exported here."""
    if given := os.environ.get("RAWLOOP_BUNDLE"):
        return Path(given)
    from exports import export_tiny_run
    from tiny_runs import save_tiny_run

    folder = tmp_path_factory.mktemp("gpu")
    run = save_tiny_run(folder / "run")
    export_tiny_run(run, folder / "onnx", variants=("fp32", "fp16"))
    return folder / "onnx"
