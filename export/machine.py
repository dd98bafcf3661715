"""What the exporting machine's processor does with 8-bit integers."""

import platform

from serve.variants import CPU_INFO, VNNI

ARM = ("asimddp", "i8mm")


def instruction_set() -> str | None:
    """Return the processor's instructions for exact products of unsigned and signed bytes; None if it has none.

    Without them an x86 processor adds pairs of products in 16 bits, which overflow unless weights have 7 bits.
    """
    if platform.machine().lower() in ("arm64",):  # Apple's have no /proc/cpuinfo, and all have them
        return "asimddp"
    try:
        words = set(CPU_INFO.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return None
    return next((name for name in (*VNNI, *ARM) if name in words), None)
