"""What a run runs on: device, precision, cores, processes."""
