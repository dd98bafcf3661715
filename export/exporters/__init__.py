"""The ways from PyTorch to a fused ONNX graph in float32."""
