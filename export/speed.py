"""Rows/s of several graphs, measured in turn: medians of several rounds."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from serve.contract.cores import num_usable_cores
from serve.encoder import Encoder
from serve.encoding import Encoding, length_sorted_batches
from serve.session import Session

NUM_ROUNDS = 3
NUM_ROWS = {1: 20, 32: 128}  # batch size -> rows of one round


def rows_per_second(
    graphs: Mapping[str, Path], encoder: Encoder, encodings: Sequence[Encoding]
) -> dict[str, dict[int, float]]:
    """Return graph -> batch size -> rows/s on this machine's CPU: all cores, batches of similar length."""
    rates: dict[str, dict[int, list[float]]] = {name: {size: [] for size in NUM_ROWS} for name in graphs}
    batches = {}
    for size, num_rows in NUM_ROWS.items():
        picked = [encodings[row % len(encodings)] for row in range(num_rows)]
        parts = length_sorted_batches([encoding.num_tokens for encoding in picked], 10**9, size)
        batches[size] = [encoder.pad([picked[row] for row in part]) for part in parts]
    with ExitStack() as opened:
        sessions = {
            name: opened.enter_context(closing(Session(graph, num_threads=num_usable_cores(), spinning=True)))
            for name, graph in graphs.items()
        }
        for round_number in range(NUM_ROUNDS + 1):
            for name, session in sessions.items():
                for size, arrays in batches.items():
                    start = time.perf_counter()
                    for inputs in arrays:
                        session.run(inputs)
                    if round_number:  # the first round warms up
                        rates[name][size].append(NUM_ROWS[size] / (time.perf_counter() - start))
    return {name: {size: float(np.median(values)) for size, values in found.items()} for name, found in rates.items()}
