"""The hardware of a run: device, precision, cores, processes."""
