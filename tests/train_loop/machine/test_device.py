"""How the launcher's environment and the hardware affect a configuration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, save_tiny_model
from transformers import AutoModelForSequenceClassification

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.machine import device
from train_loop.machine.device import (
    build_accelerator,
    is_out_of_memory,
    resolve_precision,
    shard_by_layer,
)

CPU = torch.device("cpu")


def launch_with_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def test_fsdp_1_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for version in (None, "1"):
        if version is not None:
            monkeypatch.setenv("FSDP_VERSION", version)
        with pytest.raises(InputError, match="--fsdp_version 2"):
            build_accelerator(TrainConfig(train_file="rows.csv"))


def test_fsdp_keeps_the_launchers_settings_except_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_with_fsdp2(monkeypatch)
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    plugin = device.fsdp_plugin()
    assert plugin is not None
    plugin.set_mixed_precision("bf16")  # as Accelerate does
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (None, None, None)
    assert plugin.reshard_after_forward is False
    assert plugin.cpu_ram_efficient_loading is True


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # transformers' DeBERTa and ModernBERT
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_layer_of_an_encoder_is_sharded_separately(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch_with_fsdp2(monkeypatch)
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    model = AutoModelForSequenceClassification.from_pretrained(save_tiny_model(tmp_path / "model", architecture))
    plugin = device.fsdp_plugin()
    assert plugin is not None
    shard_by_layer(plugin, model)
    plugin.set_auto_wrap_policy(model)  # as Accelerate does; rejects a class that the model lacks
    (name,) = plugin.transformer_cls_names_to_wrap
    num_layers = 1 if architecture == "albert" else 2  # ALBERT's layers share their weights
    assert sum(type(module).__name__ == name for module in model.modules()) == num_layers


def test_the_classes_that_the_launcher_names_are_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    launch_with_fsdp2(monkeypatch)
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Linear")
    plugin = device.fsdp_plugin()
    assert plugin is not None
    shard_by_layer(plugin, torch.nn.Sequential(torch.nn.Linear(2, 2)))
    assert plugin.transformer_cls_names_to_wrap == ["Linear"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_out_of_memory_is_distinguished_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_auto_is_float32_if_torch_does_not_report_cpu_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", CPU) == "no"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fsdp_in_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(device, "resolve_precision", lambda requested, _: requested)
    with pytest.raises(InputError, match=r"not with FSDP.*use bf16 or no"):
        build_accelerator(TrainConfig(train_file="rows.csv", mixed_precision="fp16"))


def test_loading_and_saving_a_model_shows_no_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build_accelerator(TrainConfig(train_file="rows.csv", mixed_precision="no"))
    model = AutoModelForSequenceClassification.from_pretrained(save_tiny_model(tmp_path / "model", "bert"))
    model.save_pretrained(tmp_path / "saved")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["tf32", "cuda_graphs"])
def test_an_option_of_gpus_is_refused_in_training_but_not_in_evaluation(name: str) -> None:
    config = TrainConfig(train_file="rows.csv", mixed_precision="no", **{name: True})
    with pytest.raises(InputError, match=f"--{name} is for NVIDIA GPUs, and the device is cpu; pass --{name} false"):
        build_accelerator(config)
    assert build_accelerator(config, for_evaluation=True).device.type == "cpu"


def test_cuda_graphs_are_refused_on_several_processes() -> None:
    state: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    with pytest.raises(InputError, match="one process only"):
        device._require_device(TrainConfig(train_file="rows.csv", cuda_graphs=True), state)


def test_a_precision_that_the_hardware_lacks_is_refused_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bf16(**_: Any) -> bool:
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", no_bf16)
    with pytest.raises(InputError, match="use fp16 or auto"):
        resolve_precision("bf16", torch.device("cuda"))
    assert resolve_precision("auto", torch.device("cuda")) == "fp16"
