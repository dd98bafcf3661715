"""Benchmarks of training, inference and load, beside what a user would pick instead: `python -m bench`."""
