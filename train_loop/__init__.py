"""Training: labelled rows in, a finished run directory out. `accelerate launch train_loop/main.py`."""
