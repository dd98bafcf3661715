"""What export asks of transformers: a version that it can export, and the attention that ONNX Runtime fuses."""

import re
from importlib.metadata import version

from serve.contract.errors import InputError


def require_exportable() -> None:
    """Raise InputError for transformers 5.0 to 5.11: their models do not export, or are not fused."""
    if (5,) <= _transformers() < (5, 12):
        raise InputError(
            f"transformers {version('transformers')}: models of versions 5.0 to 5.11 do not export well (5.0 fuses no "
            "operator, 5.8 fails); pip install -U 'transformers>=5.12'"
        )


def attention() -> str | None:
    """Return the attention whose traced operators ONNX Runtime fuses; None is the default of transformers."""
    return "eager" if _transformers() >= (5,) else None


def _transformers() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version("transformers"))[:2])
