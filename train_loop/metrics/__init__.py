"""Metrics of a split: of classes, probabilities, sets of labels and numbers, with their intervals."""
