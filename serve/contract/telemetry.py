"""What libraries would send home unasked, switched off before they load."""

import os

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and newer: a device id under ~/.cache, and events
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, transformers, datasets: what is loaded from the Hub
}
"""Environment variable -> value."""


def switch_off_telemetry() -> None:
    """Set every switch that the user has not set; call before the libraries are imported."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
