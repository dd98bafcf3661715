"""The model: pretrained weights in, a model folder with a card out."""
