"""The parts of one optimizer step: its rows, tensors, loss and update."""
