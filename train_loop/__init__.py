"""Training: labelled rows in, a finished run directory out. `accelerate launch train_loop/main.py`."""

NEEDED = (
    "torch",
    "accelerate",
    "transformers",
    "datasets",
    "evaluate",
    "jsonargparse",
    "rich",
    "sklearn",
    "matplotlib",
    "jinja2",
    "datasketch",
)
"""Modules that every command here imports; the extra `train` installs them."""
