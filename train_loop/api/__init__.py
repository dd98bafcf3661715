"""The public functions of training and what they return; `from train_loop import ...`."""
