"""What the machine could reach at best, and how many operations a row takes: in a process of its own."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from bench.harness.worker import ContenderWorker, Message
from train_loop.machine.device import resolve_precision

LENGTHS = (16, 32, 64)
"""Three lengths [tokens] determine  a + b T + c T^2  exactly."""


class Ceiling(ContenderWorker):
    """Measures the matrix product, and counts the operations of a model (a folder, or a Hub id)."""

    def __init__(self, model: str, num_labels: int) -> None:
        self._model = model
        self._num_labels = num_labels

    def ceilings(self, seconds: float) -> Message:
        """Return the FLOP/s of the best large matrix product in float32, and in bf16 where the machine has it."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        has_bf16 = resolve_precision("auto", torch.device(device)) == "bf16"
        precisions = ("fp32", "bf16") if has_bf16 else ("fp32",)
        return {name: matmul_ceiling(name, device, seconds=seconds) for name in precisions}

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


def matmul_ceiling(precision: str, device: str, *, seconds: float) -> float:
    """Return the best FLOP/s of one large matrix product of torch, over several sizes."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    best = 0.0
    for size in (1024, 2048, 8192) if device == "cuda" else (512, 1024, 2048):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        torch.mm(left, right, out=out)
        ends = time.perf_counter() + seconds / 3
        while (began := time.perf_counter()) < ends:
            torch.mm(left, right, out=out)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best
