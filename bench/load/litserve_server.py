"""LitServe around a transformers pipeline, as commonly written; run by the Python that has LitServe.

python litserve_server.py MODEL PORT
"""

import sys
from typing import Any

import litserve
from transformers import pipeline


class TextClassifier(litserve.LitAPI):
    """Batches of up to 32 texts, gathered for 5 ms."""

    def setup(self, device: str) -> None:
        self.classify = pipeline("text-classification", model=sys.argv[1], device="cuda" if "cuda" in device else "cpu")

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["input"])

    def predict(self, texts: list[str]) -> Any:
        return self.classify(texts, batch_size=32, truncation=True)

    def encode_response(self, answer: Any) -> Any:
        return answer


if __name__ == "__main__":
    server = litserve.LitServer(TextClassifier(max_batch_size=32, batch_timeout=0.005), accelerator="auto")
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
