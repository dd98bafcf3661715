"""Embed a classifier in a service: load it once, call it from any thread, act on calibrated scores.

echo "my card was charged twice" | python examples/embed_in_service.py runs/latest/onnx
"""

import argparse
import sys

from serve import Predictor

SURE_ENOUGH = 0.7  # scores are calibrated: of a hundred answers at 0.7, about seventy are right


def route(predictor: Predictor, message: str) -> str:
    """Return the queue for a message: its label, or a person if the model is unsure or saw only part of it."""
    prediction = predictor(message)
    return prediction.label if prediction.score >= SURE_ENOUGH and not prediction.truncated else "a person"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Route messages from standard input, one per line.")
    parser.add_argument("bundle", help="folder written by python -m export")
    with Predictor(parser.parse_args().bundle) as predictor:  # checks every file's hash; uses a GPU if there is one
        print(f"{predictor.provider}: {', '.join(predictor.labels)}", file=sys.stderr)
        for line in sys.stdin:
            print(route(predictor, line.rstrip("\n")), line, sep="\t", end="")
