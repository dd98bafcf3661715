"""A run directory and what goes into it while training runs."""
