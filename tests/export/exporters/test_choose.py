"""Which exporter is chosen, and what is said where none can be."""

import dataclasses
import sys
from pathlib import Path

import pytest

from export.__main__ import main
from export.exporters.choose import OPTIMUM, TORCH, ExporterName, choose
from export.reference import attention
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError


def test_optimum_is_chosen_wherever_it_can_be_imported() -> None:
    pytest.importorskip("optimum.onnxruntime", reason="Optimum needs transformers 4", exc_type=ImportError)
    assert choose("auto") is choose("optimum") is OPTIMUM
    assert choose("torch") is TORCH


@pytest.mark.parametrize("installed", [False, True], ids=["absent", "broken"])
def test_without_optimum_torch_exports_and_optimum_by_name_is_one_message(
    installed: bool, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = object() if installed else None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "optimum" else object())
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)  # importing it is an ImportError
    assert choose("auto") is TORCH
    assert main(["--run", str(run), "--exporter", "optimum"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --exporter optimum: Optimum cannot be imported (")
    assert line.endswith(
        "pip install optimum-onnx, which brings a transformers that it knows, or pass --exporter torch"
    )


def test_what_optimum_does_not_know_is_exported_by_torch(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(model_folder: Path, output: Path) -> None:
        raise ValueError("ernie model type is not supported")

    ignorant = dataclasses.replace(OPTIMUM, write_graph=fail)
    monkeypatch.setattr("export.build.choose", lambda name: ignorant)
    arguments = ["--run", str(run), "--output", str(tmp_path / "b"), "--variants", "fp32"]
    assert main([*arguments, "--exporter", "optimum"]) == 2
    assert "optimum cannot export architecture 'bert' (ernie model type is not supported); pass --exporter torch" in (
        capsys.readouterr().err
    )
    assert main(arguments) == 0
    assert read_bundle(tmp_path / "b").manifest.exporter == "torch"


@pytest.mark.parametrize("name", ["auto", "torch"])
@pytest.mark.parametrize(
    ("version", "exports"),
    [("4.56.0", True), ("4.57.6", True), ("5.0.0", False), ("5.8.1", False), ("5.11.0", False), ("5.12.0", True)],
)
def test_versions_of_transformers_that_do_not_export_well_are_refused(
    version: str, exports: bool, name: ExporterName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.exporters.choose.version", lambda name: version)
    monkeypatch.setattr("export.exporters.choose._why_not_optimum", lambda: "not installed")
    if exports:
        assert choose(name) is TORCH
        return
    with pytest.raises(InputError, match=rf"transformers {version}: .* pip install -U 'transformers>=5.12'"):
        choose(name)


@pytest.mark.parametrize(("version", "expected"), [("4.57.6", None), ("5.12.0", "eager"), ("6.0.0.dev0", "eager")])
def test_the_attention_is_the_one_that_is_fused(
    version: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.reference.version", lambda name: version)
    assert attention() == expected
