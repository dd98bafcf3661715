from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from exports import export_tiny_run, logits_of
from tiny_models import ARCHITECTURES
from tiny_runs import save_tiny_run, text_of

from export.exporters.choose import Exporter
from export.mask_lengths import use_lengths
from serve.contract.bundle import Bundle, read_bundle
from serve.contract.errors import InputError
from serve.gpu.tensorrt import tensorrt_for
from serve.providers import ON_CPU, GpuOptions
from serve.session import Session

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]

FUSED_ATTENTION = {"albert", "bert", "distilbert", "electra", "roberta", "xlm-roberta"}
ALL_ATTENTION_FUSED = FUSED_ATTENTION - {"albert"}


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_architecture_passes_every_gate(architecture: str, tmp_path: Path) -> None:
    made = save_tiny_run(tmp_path / "run", architecture, num_rows=200, learned=True)
    exported = export_tiny_run(made, tmp_path / "bundle")
    assert exported.left_out == {}
    found = exported.variants["fp32"].verification
    assert found.rows == 200
    assert found.label_agreement == 1.0
    assert found.max_abs_logit_difference <= 1e-4
    assert found.shape_differences.keys() == {"right", "left", "mixed", "1x1", "1xlongest"}
    fused = exported.variants["fp32"].fused_operators
    assert ("Attention" in fused) == (architecture in FUSED_ATTENTION)
    assert exported.variants["int8"].verification.num_batch_flips == 0
    for variant in exported.variants.values():  # the last layer works only on the head's token
        nodes = onnx.load(exported.folder / variant.file).graph.node
        assert any(node.name.endswith("/early_gather") for node in nodes)
    fp32 = onnx.load(exported.folder / "model.onnx")
    assert use_lengths(fp32) == (architecture in ALL_ATTENTION_FUSED), "whether attention can get lengths"
    written = read_bundle(tmp_path / "bundle")
    assert written.classifier.padding_side == ("left" if architecture == "xlnet" else "right")
    if architecture == "xlnet":  # which Optimum does not know
        assert written.manifest.exporter == "torch"


def test_the_bundle_says_how_the_held_out_rows_are_distributed(bundle: Bundle) -> None:
    num_rows = bundle.manifest.variants["fp32"].verification.rows
    assert {name: sum(each.counts) for name, each in bundle.classifier.reference.items()} == dict.fromkeys(
        ("label", "confidence", "tokens", "unknown_tokens"), num_rows
    )


def test_pairs_export(tmp_path: Path) -> None:
    made = save_tiny_run(tmp_path / "run", pairs=True, num_rows=24)
    exported = export_tiny_run(made, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].verification.label_agreement == 1.0
    manifest = read_bundle(tmp_path / "bundle").manifest
    assert len(manifest.canary) == 2
    assert "token_type_ids" in manifest.input_names


def test_static_int8_gives_each_text_the_same_bits_in_any_batch(bundle: Bundle) -> None:
    texts = [text_of(number) for number in range(40)]
    alone = logits_of(bundle, "int8", texts, 1)
    for batch in (7, 40):
        assert np.array_equal(logits_of(bundle, "int8", texts, batch), alone)
    assert bundle.manifest.variants["int8"].fused_operators["QAttention"] >= 1


def test_dynamic_int8_on_request(run: Path, tmp_path: Path) -> None:
    exported = export_tiny_run(
        run, tmp_path / "bundle", variants=("fp32", "int8"), quantization="dynamic", min_label_agreement=0.5
    )
    assert "depend on the batch" in exported.variants["int8"].method
    assert "QAttention" in exported.variants["int8"].fused_operators


def test_a_fused_graph_that_is_slower_than_its_source_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.build.SLOWER", 1_000.0)
    exported = export_tiny_run(run, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].fused_operators == {}
    assert exported.variants["fp32"].method == "not fused: the fused graph is slower here"


def test_a_graph_whose_attention_is_not_fused_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse_little(
        exporter: Exporter, graph: Path, output: Path
    ) -> Path:  # as ONNX Runtime up to 1.30 on torch's graph
        return graph

    monkeypatch.setattr(Exporter, "fuse_operators", fuse_little)
    exported = export_tiny_run(run, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].method == "fused, but not its attention"


def test_a_fused_graph_that_does_not_run_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_it(graph: Path, output: Path) -> None:
        output.write_bytes(b"no graph")

    monkeypatch.setattr("export.build.without_skip_layer_norms", break_it)
    exported = export_tiny_run(run, tmp_path / "bundle", variants=("fp32",))
    assert exported.variants["fp32"].method.startswith("not fused: the fused graph does not run (")
    assert exported.variants["fp32"].fused_operators == {}


@pytest.mark.parametrize(
    ("quantization", "broken"), [("dynamic", "quantize_dynamically"), ("static", "quantize_statically")]
)
def test_a_quantizer_that_fails_costs_only_int8(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, broken: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(f"export.build.{broken}", fail)
    exported = export_tiny_run(run, tmp_path / "bundle", variants=("fp32", "int8"), quantization=quantization)
    assert exported.left_out == {"int8": "AssertionError: AssertionError"}
    assert set(read_bundle(tmp_path / "bundle").manifest.variants) == {"fp32"}


def test_a_graph_with_external_weights_ships_as_exported(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_graph = Exporter.export_graph

    def export_with_external_weights(exporter: Exporter, model_folder: Path, output: Path) -> Path:
        graph = export_graph(exporter, model_folder, output)
        onnx.save_model(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)
        return graph

    monkeypatch.setattr(Exporter, "export_graph", export_with_external_weights)
    exported = export_tiny_run(run, tmp_path / "bundle")
    assert exported.variants["fp32"].external_files == ("weights.bin",)
    assert exported.variants["fp32"].method == "over 2 GB: exported as it is"
    assert exported.left_out == dict.fromkeys(("int8", "fp16"), "over 2 GB: not supported")
    assert logits_of(read_bundle(tmp_path / "bundle"), "fp32", ["a film"], 1).shape == (1, 2)


def test_float16_gets_the_mask_as_lengths_and_answers_as_with_the_mask(
    run: Path, bundle: Bundle, tmp_path: Path
) -> None:
    export_tiny_run(run, tmp_path / "b", variants=("fp32", "fp16"), raw_mask=True)
    raw = read_bundle(tmp_path / "b")
    texts = [text_of(number) for number in range(40)]  # padded on the right, to 20 words
    np.testing.assert_allclose(logits_of(bundle, "fp16", texts, 16), logits_of(raw, "fp16", texts, 16), atol=1e-3)
    variants = [each.manifest.variants["fp16"] for each in (bundle, raw)]
    assert [variant.details["attention_mask"] for variant in variants] == ["lengths", "raw"]
    assert "padding on the right" in variants[0].method
    assert variants[0].verification.shape_differences.keys() == {"1x1", "1xlongest", "right"}
    assert variants[1].verification.shape_differences.keys() == {"1x1", "1xlongest", "right", "left", "mixed"}


def test_verify_device_cuda_runs_the_gates_there_and_leaves_out_a_float16_that_overflows(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, str]] = []

    class FakeGpu(Session):
        def __init__(self, graph: Path, gpu: GpuOptions = ON_CPU, **options: Any) -> None:
            super().__init__(graph, **options)
            tried.append((graph.name, gpu.device))
            self._overflows = (graph.name, gpu.device) == ("fp16.onnx", "cuda")

        def run(self, inputs: Any) -> Any:
            return super().run(inputs) * np.float32("nan" if self._overflows else 1)

    monkeypatch.setattr("export.build.Session", FakeGpu)
    monkeypatch.setattr("export.build.require_device", lambda device: None)
    exported = export_tiny_run(run, tmp_path / "b", variants=("fp32", "fp16"), verify_device="cuda")
    assert {("fp32.onnx", "cuda"), ("fp32.onnx", "cpu"), ("fp16.onnx", "cuda")} <= set(tried)
    assert ("fp16.onnx", "cpu") not in tried
    assert "on CUDA: NaN or infinite logits" in exported.left_out["fp16"]


def test_without_fusion_tensorrt_gets_the_whole_graph(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"operators that TensorRT does not know \(Attention.*--no_fusion"):
        tensorrt_for(bundle, "fp32", 16)
    export_tiny_run(run, tmp_path / "b", variants=("fp32", "fp16"), fuse=False)
    for variant in ("fp32", "fp16"):
        options = tensorrt_for(read_bundle(tmp_path / "b"), variant, 16)
        assert options["trt_profile_max_shapes"].startswith("input_ids:512x16")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA")
def test_a_device_to_verify_on_that_is_absent_is_found_at_once(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device cuda: the installed ONNX Runtime cannot use it"):
        export_tiny_run(run, tmp_path / "b", verify_device="cuda")
    assert not (tmp_path / "b").exists()
