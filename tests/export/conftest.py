"""One tiny run and its bundle, for all tests of export."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from exports import export_tiny_run
from tiny_runs import save_tiny_run

from serve.contract.bundle import Bundle, read_bundle


@pytest.fixture(scope="session", autouse=True)
def float32(without_bf16: None) -> None:
    """Compare in one precision, whatever the hardware."""


@pytest.fixture(scope="session", autouse=True)
def any_speed() -> Iterator[None]:
    """Whether a fused graph is kept must not depend on how busy the machine is; and a short timing will do."""
    with pytest.MonkeyPatch.context() as monkeypatch:  # of the session, as are bundles
        monkeypatch.setattr("export.build.SLOWER", 0.0)
        monkeypatch.setattr("export.speed.NUM_ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "bert")


@pytest.fixture(scope="session")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = export_tiny_run(run, tmp_path_factory.mktemp("bundles") / "bert", min_label_agreement=0.9)
    assert exported.left_out == {}
    return read_bundle(exported.folder)
