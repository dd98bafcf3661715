import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import save_served_bundle
from numpy.typing import NDArray

from serve.contract.bundle import read_bundle, write_manifest
from serve.contract.errors import InputError
from serve.predict import main
from serve.predictor import Predictor
from serve.providers import GpuOptions
from serve.session import Session, SessionPool


class FakePool(SessionPool):
    """A GPU whose float16 is `spoiled`; the arithmetic is the CPU's."""

    spoiled: Any = staticmethod(lambda logits: logits)
    closed = 0

    def __init__(self, graph: Path, gpu: GpuOptions, **options: Any) -> None:
        super().__init__(graph, gpu, **options)
        self._gpu = GpuOptions()
        FakePool.closed = 0

    def _session(self, *, is_wide: bool) -> Session:
        session = super()._session(is_wide=is_wide)
        if self.graph.name == "model_fp16.onnx":
            session.run = lambda inputs: self.spoiled(Session.run(session, inputs))  # type: ignore[method-assign]
        session.device = "cuda"
        return session

    def close(self) -> None:
        FakePool.closed += 1
        super().close()


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = save_served_bundle(tmp_path / "bundle")
    manifest = read_bundle(folder).manifest
    (folder / "model_fp16.onnx").write_bytes((folder / "model.onnx").read_bytes())
    fp32 = manifest.variants["fp32"]
    half = dataclasses.replace(fp32, file="model_fp16.onnx")
    files = {**manifest.files, half.file: manifest.files[fp32.file]}
    defaults = {"cpu": "fp32", "cuda": "fp16"}
    variants = {"fp32": fp32, "fp16": half}
    write_manifest(folder, dataclasses.replace(manifest, variants=variants, default_variants=defaults, files=files))
    monkeypatch.setattr("serve.predictor.SessionPool", FakePool)
    return folder


def not_finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits * np.float32("nan")


def wrong(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits + np.float32([0, 0.5, 0])


@pytest.mark.parametrize(
    ("spoiled", "problem"), [(not_finite, "are not finite"), (wrong, "0.5 from the one at export")]
)
def test_a_gpu_that_answers_otherwise_is_an_error_and_fp32_the_way_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoiled: Any, problem: str
) -> None:
    monkeypatch.setattr(FakePool, "spoiled", staticmethod(spoiled))
    with pytest.raises(InputError, match=f"variant fp16 does not answer its canary on cuda .*{problem}.*variant fp32"):
        Predictor(bundle, device="cuda")
    assert FakePool.closed, "the GPU's memory is freed"
    with Predictor(bundle, device="cuda", variant="fp32") as predictor:
        assert predictor("good").label == "positive"
    rows, output = bundle.parent / "rows.txt", bundle.parent / "rows.csv"
    rows.write_text("good\n")
    command = ["--bundle", str(bundle), "--device", "cuda", "--file", str(rows), "--output", str(output), "--quiet"]
    assert main(command) == 2
    assert "does not answer its canary" in capsys.readouterr().err
    assert main([*command, "--variant", "fp32", "--device_id", "0"]) == 0


def test_a_gpu_that_rounds_otherwise_is_taken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePool, "spoiled", staticmethod(lambda logits: logits + np.float32(0.05)))
    with Predictor(bundle, device="cuda") as predictor:
        assert predictor.variant == "fp16"
