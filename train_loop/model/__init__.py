"""The model: pretrained weights in, a model folder with its card out."""
