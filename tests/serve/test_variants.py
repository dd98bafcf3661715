import dataclasses
import logging
from pathlib import Path

import pytest
from tiny_bundles import save_tiny_bundle

from serve.contract.bundle import Bundle, read_bundle
from serve.contract.errors import InputError
from serve.variants import choose_variant


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Return a bundle whose default on a CPU is an int8 graph made for VNNI."""
    whole = read_bundle(save_tiny_bundle(tmp_path))
    fp32 = whole.manifest.variants["fp32"]
    variants = {"fp32": fp32, "int8": dataclasses.replace(fp32, instruction_set="avx512_vnni")}
    defaults = {"cpu": "int8", "cuda": "fp32"}
    return dataclasses.replace(
        whole, manifest=dataclasses.replace(whole.manifest, variants=variants, default_variants=defaults)
    )


def run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, machine: str = "x86_64") -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags} sse2\n")
    monkeypatch.setattr("serve.variants.CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)


def test_the_default_of_the_device_is_taken(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_on(monkeypatch, tmp_path, "avx512_vnni")
    assert choose_variant(bundle, "cpu") == "int8"
    assert choose_variant(bundle, "cuda") == "fp32"
    assert choose_variant(bundle, "cpu", "fp32") == "fp32"


@pytest.mark.parametrize(("flags", "machine"), [("avx_vnni", "x86_64"), ("asimd", "aarch64")])
def test_other_processors_that_multiply_exactly_run_it_too(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, machine: str
) -> None:
    run_on(monkeypatch, tmp_path, flags, machine)
    assert choose_variant(bundle, "cpu") == "int8"


def test_without_its_instructions_auto_takes_fp32_and_says_so(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_on(monkeypatch, tmp_path, "avx2")
    with caplog.at_level(logging.WARNING):
        assert choose_variant(bundle, "cpu") == "fp32"
    assert "needs avx512_vnni, which this processor lacks" in caplog.text


def test_without_its_instructions_asking_for_it_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(monkeypatch, tmp_path, "avx2")
    with pytest.raises(InputError, match="answers would be wrong"):
        choose_variant(bundle, "cpu", "int8")


def test_a_variant_that_is_not_there_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no variant 'fp16'; it has fp32, int8"):
        choose_variant(bundle, "cpu", "fp16")
