"""torch's tracer with ONNX Runtime's optimizer."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import export_tiny_run, logits_of
from tiny_runs import save_tiny_run, text_of
from transformers import AutoConfig

from export.exporters.choose import TORCH
from export.graphs import external_files, input_names
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError

TEXTS = [text_of(number) for number in range(40)]


def test_torch_exports_what_optimum_exports(tmp_path: Path) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="Optimum needs transformers 4", exc_type=ImportError)
    run = save_tiny_run(tmp_path / "run", num_rows=24)
    ways = ("torch", "optimum")
    exported = {way: export_tiny_run(run, tmp_path / way, variants=("fp32",), exporter=way) for way in ways}
    bundles = {way: read_bundle(tmp_path / way) for way in ways}
    assert {way: bundles[way].manifest.exporter for way in ways} == {way: way for way in ways}
    fused = [exported[way].variants["fp32"].fused_operators for way in ways]
    assert fused[0] == fused[1] == {"Attention": 2, "BiasGelu": 2}
    assert len({frozenset(bundles[way].manifest.input_names) for way in ways}) == 1
    ours, theirs = (logits_of(bundles[way], "fp32", TEXTS, 16) for way in ways)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_large_weights_are_in_one_file(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 2 GB the tracer writes a file for each weight."""
    import torch

    trace = torch.onnx.export

    def trace_a_large_model(model: object, arrays: object, file: str, **options: object) -> None:
        trace(model, arrays, file, **options)
        onnx.save_model(
            onnx.load(file), file, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
        )

    monkeypatch.setattr("torch.onnx.export", trace_a_large_model)
    graph = TORCH.export_graph(run / "model", tmp_path)
    assert external_files(graph) == ("model.onnx_data",)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.onnx", "model.onnx_data"}
    assert len(onnx.load(graph).graph.initializer) > 1


def test_inputs_that_the_model_does_not_take_are_not_exported(tmp_path: Path) -> None:
    """A tokenizer may make token types for a model without segments."""
    run = save_tiny_run(tmp_path / "run", "distilbert", num_rows=24)
    config = run / "model" / "tokenizer_config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"attention_mask"\n', '"attention_mask", "token_type_ids"\n'),
        encoding="utf-8",
    )
    assert "token_type_ids" in config.read_text(encoding="utf-8")
    graph = TORCH.export_graph(run / "model", tmp_path / "graph")
    assert set(input_names(graph)) == {"input_ids", "attention_mask"}


def test_a_model_that_cannot_be_traced_is_one_message(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise TypeError("no such operator\nand more")

    monkeypatch.setattr("torch.onnx.export", fail)
    architecture = AutoConfig.from_pretrained(run / "model").model_type
    with pytest.raises(InputError, match=rf"torch cannot export architecture '{architecture}' \(no such operator\);"):
        TORCH.export_graph(run / "model", tmp_path)
