"""Benchmarks of training, inference and load, next to what a user would pick instead: `python -m bench`."""
