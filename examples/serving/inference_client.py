"""Classify with Hugging Face's own client.

python examples/serving/inference_client.py http://127.0.0.1:8000
"""

import sys

from huggingface_hub import InferenceClient

server = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = InferenceClient(model=server)  # token="KEY" if the server has --api_keys
for element in client.text_classification("I loved it", top_k=3):
    print(f"{element.score:.4f}  {element.label}")
