"""What only a GPU has: recorded kernels, buffers on the device, TensorRT."""
