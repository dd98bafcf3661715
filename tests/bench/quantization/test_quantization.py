import json
from pathlib import Path

import pytest
from tiny_bundles import save_tiny_bundle
from tiny_runs import save_tiny_run

from bench.harness.processes import ContenderFailed
from bench.harness.results import read_results
from bench.inference import contenders
from bench.quantization import run as quantization
from bench.quantization.run import FP32, OURS, WAYS, QuantizationOptions, run
from export.__main__ import main as export
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with its bundle of fp32 and int8."""
    folder = save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    assert export(["--run", str(folder), "--variants", "fp32", "int8", "--min_label_agreement", "0.5"]) == 0
    if "int8" not in read_bundle(folder / "onnx").manifest.variants:
        pytest.skip("int8 is left out where this machine's kernels give a text other bits in another batch")
    return folder


def test_the_graphs_that_were_chosen_are_made_and_measured_and_no_others(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(*_: object) -> Path:
        raise ContenderFailed("Optimum cannot export this model: xlnet")

    monkeypatch.setattr(contenders, "export_for_optimum", cannot)
    unfused, _, per_channel, *_ = WAYS
    options = QuantizationOptions(
        run=tiny_run, quick=True, contenders=["PyTorch fp32", OURS, per_channel, unfused], self_check=True,
        threads=1, output=tmp_path,
    )  # fmt: skip
    run(options, "python -m bench quantization")
    results = read_results(tmp_path)
    records = {record.name: record for record in results.contenders}
    assert list(records) == ["PyTorch fp32", OURS, unfused, per_channel, f"{OURS} (again)"]
    assert records[unfused].status == "failed"
    assert records[unfused].reason == "could not be made: Optimum cannot export this model: xlnet"
    for name in (OURS, per_channel, f"{OURS} (again)"):
        assert records[name].status == "measured", records[name].reason
        assert records[name].facts["size_mb"] > 0
        assert 0 <= records[name].facts["agreement"] <= 1
        assert results.of_case("batch 32")[name].samples[0].amount % 32 == 0
    assert records[OURS].facts["flips"] == 0
    assert (tmp_path / "quantization.png").is_file()
    out = capsys.readouterr().out
    assert "making dynamic, fused, per channel" in out
    assert "making static QDQ" not in out
    assert json.loads(out.splitlines()[-1])["not_measured"].keys() == {unfused}


def test_a_single_contender_can_be_measured(tiny_run: Path, tmp_path: Path) -> None:
    run(QuantizationOptions(run=tiny_run, quick=True, contenders=[FP32], threads=1, output=tmp_path), "")
    assert read_results(tmp_path).headline == FP32


def test_too_few_rows_are_reported(tmp_path: Path) -> None:
    folder = save_tiny_run(tmp_path / "tiny", num_rows=20)
    assert export(["--run", str(folder), "--variants", "fp32"]) == 0
    with pytest.raises(InputError, match="20 rows, and the largest batch needs 32"):
        run(QuantizationOptions(run=folder), "")


def test_a_bundle_without_static_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no static int8; export the run again"):
        quantization.place_graphs(read_bundle(save_tiny_bundle(tmp_path)), tmp_path)
