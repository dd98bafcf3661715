"""The bundle's canary: whether the model answers on this device as it did where it was exported."""

import numpy as np

from serve.contract.bundle import Bundle, Variant
from serve.contract.errors import InputError
from serve.encoder import Encoder, TextInput
from serve.session import Session

LEAST_TOLERANCE = 0.2
"""Difference of a logit that is always allowed: other kernels round otherwise. It moves few probabilities by 0.05. For
numbers, as a share of their spread."""
TOLERANCE = 4.0
"""Difference allowed, as a multiple of the largest one from PyTorch that the variant's verification met."""


def canary_input(bundle: Bundle) -> TextInput:
    """Return the canary's text or pair."""
    first, *second = bundle.manifest.canary
    return (first, second[0]) if second else first


def spread_of(record: Variant) -> float:
    """Return the unit of tolerances: 1 for labels, the spread of held-out answers for numbers."""
    return 1.0 if record.verification.numbers is None else record.verification.numbers.spread


def require_canary(bundle: Bundle, variant: str, encoder: Encoder, session: Session) -> None:
    """Ask a session the canary.

    float16 overflows only where activations are float16: a verification on a CPU proves nothing about a GPU.

    Raises:
        InputError: an answer is not finite, or too far from the one at export.
    """
    record = bundle.manifest.variants[variant]
    encodings = encoder.encode([canary_input(bundle)], encoder.classifier.truncation_side)  # one window
    logits = session.run(encoder.pad(encodings, length_multiple=session.length_multiple))[0]  # [C]
    expected = np.array(record.canary_logits)
    least = LEAST_TOLERANCE * spread_of(record)
    allowed = max(least, TOLERANCE * record.verification.max_abs_logit_difference)
    if logits.shape != expected.shape:
        problem = f"it has {len(logits)} logits, at export {len(expected)}"
    elif not np.isfinite(logits).all():
        problem = "its logits are not finite numbers"
    elif (worst := float(np.abs(logits - expected).max())) > allowed:
        problem = f"a logit is {worst:.3g} from the one at export, allowed {allowed:.3g}"
    else:
        return
    other = "variant fp32, or " if variant != "fp32" and "fp32" in bundle.manifest.variants else ""
    raise InputError(
        f"{bundle.folder}: variant {variant} does not answer its canary on {session.device} ({session.provider}): "
        f"{problem}. Choose {other}device cpu; python -m export --verify_device {session.device} verifies the variants "
        "there"
    )
