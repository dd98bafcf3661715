"""Predictions, error analysis, data audit and reports of a trained model."""
