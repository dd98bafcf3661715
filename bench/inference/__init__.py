"""Inference in process, next to PyTorch, pipeline and Optimum."""
