"""What the machine could do at best, and what a row costs in operations: measured in a process of its own."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from bench.harness.hardware import matmul_ceiling
from bench.harness.session import ContenderWorker, Message

LENGTHS = (16, 32, 64)
"""Three lengths [tokens] determine  a + b T + c T^2  exactly."""


class Ceiling(ContenderWorker):
    """Measures the matrix product, and counts a model's operations.

    Args:
        model: folder of the model, or its Hub id.
        num_labels: classes of its head.
    """

    def __init__(self, model: str, num_labels: int) -> None:
        self._model = model
        self._num_labels = num_labels
        self._device = "cuda" if torch.cuda.is_available() else "cpu"

    def start(self) -> Message:
        return {}

    def ceilings(self, precisions: list[str], seconds: float) -> Message:
        """Return the FLOP/s of the best large matrix product by precision."""
        return {name: matmul_ceiling(name, self._device, seconds=seconds) for name in precisions}  # type: ignore[arg-type]

    def flops_of_row(self) -> Message:
        """Return a, b, c of  FLOPs = a + b T + c T^2  of one row of T tokens, forward and backward.

        Counted by torch from the shapes of the matrix products, not measured.
        """
        model = AutoModelForSequenceClassification.from_pretrained(
            self._model, num_labels=self._num_labels, ignore_mismatched_sizes=True, attn_implementation="eager"
        )
        counts = []
        for length in LENGTHS:
            tokens = torch.full((1, length), 5)
            with FlopCounterMode(display=False) as counter:
                model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits.sum().backward()
            counts.append(float(counter.get_total_flops()))
        powers = torch.tensor([[1.0, t, t * t] for t in LENGTHS], dtype=torch.float64)
        return {"coefficients": torch.linalg.solve(powers, torch.tensor(counts, dtype=torch.float64)).tolist()}
