"""OpenVINO as a peer, in a Python of its own: a fake one, or the real one that OPENVINO_PYTHON names."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from places import ROOT, SUPPORT
from rich.console import Console
from tiny_runs import save_tiny_run

from bench.harness.results import read_results
from bench.harness.workload import rows_of_run
from bench.inference import contenders
from bench.inference.contenders import REFERENCE, THROUGHPUT
from bench.inference.openvino_workers import REMEDY
from bench.inference.run import InferenceOptions, run, subject
from bench.quantization.run import FP32, QuantizationOptions
from bench.quantization.run import run as run_quantization
from export.__main__ import main as export
from serve.contract.bundle import read_bundle

BF16, INT8 = "OpenVINO bf16", "OpenVINO int8"
REAL = os.environ.get("OPENVINO_PYTHON")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with its bundle."""
    folder = save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    assert export(["--run", str(folder), "--variants", "fp32"]) == 0
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """Return a Python that has OpenVINO and NNCF."""
    if REAL:
        return Path(REAL)
    (tmp_path / "openvino-1.2.dist-info").mkdir()
    (tmp_path / "openvino-1.2.dist-info" / "METADATA").write_text("Name: openvino\nVersion: 1.2\n", encoding="utf-8")
    script = tmp_path / "python"
    packages = f"$PYTHONPATH:{SUPPORT / 'fake_openvino'}:{tmp_path}"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec {sys.executable} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


@pytest.fixture(autouse=True)
def no_optimum(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the bundle's graph for Optimum's, which is not installed everywhere."""

    def exported(_: Path, target: Path) -> None:
        target.mkdir()
        shutil.copy(read_bundle(tiny_run / "onnx").graph("fp32"), target / "model.onnx")

    monkeypatch.setattr(contenders, "export_for_optimum", exported)


def test_its_entrants_are_measured_and_judged_in_a_python_of_its_own(
    tiny_run: Path, python: Path, tmp_path: Path
) -> None:
    names = [REFERENCE, BF16, INT8, THROUGHPUT]
    run(
        InferenceOptions(
            run=tiny_run, quick=True, contenders=names, threads=1, output=tmp_path / "out", openvino_python=python
        ),
        "",
    )
    results = read_results(tmp_path / "out")
    assert [(each.name, each.status, each.reason) for each in results.contenders] == [
        (name, "measured", "") for name in names
    ]
    for each in results.contenders:
        assert {"accuracy", "agreement", "flips", "cold_start_s", "peak_memory_mib"} <= each.facts.keys()
        assert REAL or each.facts["agreement"] == 1.0
    assert results.of_case("batch 32").keys() == set(names)
    assert results.of_case("model alone, batch 32").keys() == {REFERENCE, BF16, INT8}
    assert REAL or results.machine.versions["openvino"] == "1.2"


def test_its_graphs_stand_next_to_other_ways_to_quantize(
    tiny_run: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = read_bundle(tiny_run / "onnx").graph("fp32")
    monkeypatch.setattr("bench.quantization.run.place_graphs", lambda *_: {FP32: graph})
    names = [REFERENCE, FP32, BF16, INT8]
    run_quantization(
        QuantizationOptions(
            run=tiny_run, quick=True, contenders=names, threads=1, output=tmp_path / "out", openvino_python=python
        ),
        "",
    )
    facts = {each.name: each.facts for each in read_results(tmp_path / "out").contenders}
    assert list(facts) == names
    assert all({"accuracy", "agreement", "flips", "largest_change"} <= each.keys() for each in facts.values())
    assert facts[BF16]["size_mb"] == pytest.approx(facts[FP32]["size_mb"])
    assert REAL or facts[INT8]["size_mb"] == pytest.approx(facts[FP32]["size_mb"] + 1)  # with its weights' file


@pytest.mark.skipif(importlib.util.find_spec("openvino") is not None, reason="this Python has OpenVINO")
def test_without_it_the_others_are_measured_and_the_report_says_how_to_get_it(tiny_run: Path, tmp_path: Path) -> None:
    names = ["rawloop fp32", BF16, INT8, THROUGHPUT]
    run(InferenceOptions(run=tiny_run, quick=True, contenders=names, threads=1, output=tmp_path), "")
    records = {each.name: each for each in read_results(tmp_path).contenders}
    assert records["rawloop fp32"].status == "measured"
    for name in (BF16, INT8, THROUGHPUT):
        assert records[name].status == "not installed"
        assert "python3 -m venv ov && ov/bin/pip install openvino==" in records[name].reason
        assert "--openvino_python ov/bin/python" in records[name].reason


def test_the_documents_name_the_same_command() -> None:
    command, _, flag = REMEDY.partition(", then pass ")
    text = (ROOT / "docs" / "BENCHMARKS.md").read_text(encoding="utf-8")
    assert command in text
    assert flag in text


def test_int8_is_calibrated_on_training_rows(tiny_run: Path, tmp_path: Path) -> None:
    with subject(InferenceOptions(run=tiny_run, quick=True), tmp_path, Console()) as (graphs, rows):
        assert set(graphs.calibration.inputs) <= set(rows_of_run(tiny_run, "train").inputs)
        assert set(rows.inputs) <= set(rows_of_run(tiny_run, "validation").inputs)
        assert len(graphs.calibration) <= contenders.NUM_CALIBRATION_ROWS
