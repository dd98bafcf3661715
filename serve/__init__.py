"""Serving: a bundle in, labels out, with ONNX Runtime and without torch.

Nothing in this package may import torch, transformers, datasets or optimum.
"""
