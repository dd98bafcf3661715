"""Which variant of a bundle to run on this machine."""

import logging
import platform
from pathlib import Path
from typing import Literal

from serve.contract.bundle import Bundle, DeviceName, VariantName
from serve.contract.errors import InputError

logger = logging.getLogger(__name__)

CPU_INFO = Path("/proc/cpuinfo")
VNNI = ("avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni")
"""x86 instructions that multiply bytes exactly, as Linux and others spell them."""


def choose_variant(bundle: Bundle, device: DeviceName, asked: VariantName | Literal["auto"] = "auto") -> str:
    """Return the variant to run; `auto` takes the bundle's default for the device.

    A graph whose 8-bit weights were made for VNNI returns wrong logits on an x86 processor without it, which adds pairs
    of products in 16 bits. There, `auto` takes fp32 and logs it.

    Raises:
        InputError: the bundle has no such variant, or it would give wrong answers here.
    """
    name = bundle.default_variant(device) if asked == "auto" else asked
    bundle.graph(name)  # raises if there is none
    made_for = bundle.manifest.variants[name].instruction_set
    if device != "cpu" or made_for not in VNNI or not lacks_vnni():
        return name
    if asked != "auto" or "fp32" not in bundle.manifest.variants:
        raise InputError(
            f"{bundle.folder}: variant {name} was made for processors with {made_for}, which this one lacks: its "
            "answers would be wrong. Choose variant fp32, or export the run again on a machine like this one"
        )
    logger.warning("variant %s needs %s, which this processor lacks: serving fp32, which is slower", name, made_for)
    return "fp32"


def lacks_vnni() -> bool:
    """Return whether this is known to be an x86 processor without VNNI."""
    words = cpu_words()
    return bool(words) and platform.machine().lower() in ("x86_64", "amd64") and words.isdisjoint(VNNI)


def cpu_words() -> set[str]:
    """Return the words that Linux has for this processor, its instruction sets among them; none elsewhere."""
    try:
        return set(CPU_INFO.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return set()
