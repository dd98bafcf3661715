"""The model: pretrained weights in, a model folder out."""
