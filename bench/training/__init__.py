"""Training speed, next to transformers' Trainer."""
