"""int8 graphs, next to other ways to quantize."""
