"""What one optimizer step is made of: its rows, its tensors, its loss, its update."""
