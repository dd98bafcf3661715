"""int8 whose answer for a text does not depend on the batch (`static.py`); ONNX Runtime's own as an alternative."""
