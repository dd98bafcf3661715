"""Classify with NVIDIA's Triton client (pip install 'tritonclient[http]').

python examples/serving/triton_client.py 127.0.0.1:8000 MODEL        # GET /models returns the model's name
"""

import sys

import numpy as np
import tritonclient.http as triton

TEXTS = ["I loved it", "I want my money back"]

address, model = sys.argv[1:]
with triton.InferenceServerClient(address) as client:
    texts = triton.InferInput("text", [len(TEXTS)], "BYTES")
    texts.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=np.object_))
    result = client.infer(model, [texts])
    for text, label, score in zip(TEXTS, result.as_numpy("label"), result.as_numpy("score"), strict=True):
        print(f"{score:.4f}  {label.decode()}  {text}")
