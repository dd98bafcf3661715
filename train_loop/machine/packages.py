"""The packages that training needs, which a base install of the distribution lacks."""

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
