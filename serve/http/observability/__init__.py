"""What a server says of itself: metrics, traces, logs."""
