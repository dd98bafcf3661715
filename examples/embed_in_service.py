"""Embed a classifier in a service: load it once, ask it from any thread, act on calibrated scores.

echo "my card was charged twice" | python examples/embed_in_service.py runs/latest/onnx
"""

import sys

from serve import Predictor

SURE_ENOUGH = 0.7  # scores are calibrated: of a hundred answers at 0.7, about seventy are right


def route(predictor: Predictor, message: str) -> str:
    """Return the queue of a message: its label, or people's where the model is not sure or saw only a part."""
    prediction = predictor(message)
    return prediction.label if prediction.score >= SURE_ENOUGH and not prediction.truncated else "a person"


if __name__ == "__main__":
    with Predictor(sys.argv[1]) as predictor:  # checks every file's hash; on CUDA where there is a GPU
        print(f"{predictor.provider}: {', '.join(predictor.labels)}", file=sys.stderr)
        for line in sys.stdin:
            print(route(predictor, line.rstrip("\n")), line, sep="\t", end="")
