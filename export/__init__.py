"""Export: a finished run -> an ONNX bundle whose every graph was proved before it ships."""
