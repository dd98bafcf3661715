"""Dynamic batching: requests from many clients share runs of the model."""
