"""Export: a finished run -> an ONNX bundle, every graph of it verified before it ships."""
