"""Verification of a graph against PyTorch: held-out rows, odd shapes, every padding, alone and in batches (promise E1).

What is verified is what will be served: the bundle's own tokenizer file and contract with serve's encoder and
session, against the run's model with its transformers tokenizer.
"""

import dataclasses
import functools
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from export.console import Advance, ignore
from export.graphs import Candidate
from export.reference import Reference
from export.rows import LabelledRows
from serve.contract.bundle import Verification
from serve.contract.classifier import Side
from serve.contract.errors import InputError
from serve.contract.labels import scores_from_logits
from serve.encoder import Encoder, Encoding, length_sorted_batches
from serve.session import Session

TIE = 1e-4
"""Labels may differ where PyTorch's top two logits are this close."""
ROUNDING = 1e-6
"""Shares times rows are whole numbers to within this."""
BATCH_ROWS = 32
MAX_TOKENS = 8_192
FEW_ROWS = 200
"""Fewer held-out rows prove little."""
TOO_FEW_ROWS = 50
"""On fewer held-out rows every label must agree: a single exception would be more than 2 %."""
NUM_SHAPE_ROWS = 64
"""Rows per padding."""
RIGHT_PADDED = ("1x1", "1xlongest", "right")
"""The odd shapes without padding, or with padding on the right."""
SHAPE_ERROR = 4.0
"""How much further from PyTorch a graph may be on another padding or shape than on the held-out rows, as a factor.

A correct graph reached 2.6 (left padding moves positions, for which integers were not calibrated); graphs that ignore
where the padding is reached 5 to 12."""
NUM_RESAMPLES = 1_000
SEED = 0


@dataclasses.dataclass(frozen=True)
class Gate:
    """The bounds that a variant must meet."""

    max_abs_logit_difference: float | None = None
    min_label_agreement: float | None = None
    max_accuracy_drop: float | None = None
    must_be_batch_invariant: bool = True


GATES = {
    "fp32": Gate(max_abs_logit_difference=1e-4, min_label_agreement=1.0),
    "fp16": Gate(min_label_agreement=0.995),
    "int8": Gate(min_label_agreement=0.98, max_accuracy_drop=0.005),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was measured of one graph, and why it may not ship."""

    record: Verification
    shortfalls: list[str]
    canary_logits: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Proved:
    """A graph that passed its gate."""

    candidate: Candidate
    verdict: Verdict


@dataclasses.dataclass(frozen=True)
class Judge:
    """Verifies graphs on the same rows against the same answers."""

    encoder: Encoder
    reference: Reference
    rows: LabelledRows
    expected: NDArray[np.float32]
    """PyTorch's logits [N, C]."""
    canary: tuple[str, ...]

    def verify(
        self, session: Session, gate: Gate, advance: Advance = ignore, *, right_padding_only: bool = False
    ) -> Verdict:
        """Compare a graph with PyTorch, and its answers to lone rows with those in batches.

        `advance` gets the number of rows done. With `right_padding_only`, no other padding is tried.

        Raises:
            InputError: contract and model have different numbers of labels, or tokenizer.json produces ids that the
                model does not have, or others than the transformers tokenizer.
        """
        problems = contract_problems(self.encoder, self.reference)
        if len(self.encoder.classifier.labels) != len(self.reference.labels):
            raise InputError(problems[0])  # logits cannot be compared
        encodings = self._encodings
        alone = self._logits(session, encodings, list(np.arange(len(encodings))[:, None]), advance)  # [N, C]
        by_length = length_sorted_batches([e.num_tokens for e in encodings], MAX_TOKENS, BATCH_ROWS)
        together = [self._logits(session, encodings, batches) for batches in (_slices(len(encodings)), by_length)]
        shapes = {
            name: session.run(arrays) - expected
            for name, (arrays, expected) in self._odd_shapes.items()
            if name in RIGHT_PADDED or not right_padding_only
        }
        record = self._record(alone, together, shapes)
        if not all(np.isfinite(found).all() for found in (alone, *together)):
            problems.append("NaN or infinite logits")
        problems += _shape_problems(shapes, alone - self.expected)
        problems += missed_bounds(record, gate)
        inputs = self.canary[0] if len(self.canary) == 1 else (self.canary[0], self.canary[1])
        canary_logits = session.run(self.encoder.pad(self.encoder.encode([inputs])))[0]
        return Verdict(record, problems, tuple(float(value) for value in np.nan_to_num(canary_logits)))

    def odd_shapes(self, *, right_padding_only: bool = False) -> list[dict[str, NDArray[np.int64]]]:
        """Return inputs [B, T]: 1 x 1, 1 x longest, and ragged batches with each padding."""
        shapes = self._odd_shapes.items()
        return [arrays for name, (arrays, _) in shapes if name in RIGHT_PADDED or not right_padding_only]

    @functools.cached_property
    def _encodings(self) -> list[Encoding]:
        encodings = self.encoder.encode(self.rows.inputs)
        unknown = max(int(encoding.ids.max()) for encoding in encodings)
        if unknown >= self.reference.vocabulary_size:
            # No graph can look up such an id, so there is nothing to run.
            raise InputError(
                f"tokenizer.json produces id {unknown}, but the model has {self.reference.vocabulary_size} words: it "
                "belongs to another model. Put this model's tokenizer into the run's model/"
            )
        if problem := tokenizer_problem(encodings, self.reference, self.rows):
            raise InputError(problem)  # the graph and PyTorch would answer different inputs
        return encodings

    @functools.cached_property
    def _odd_shapes(self) -> dict[str, tuple[dict[str, NDArray[np.int64]], NDArray[np.float32]]]:
        """Name -> 1 x 1, 1 x longest or a ragged batch with right, left or mixed padding, and PyTorch's logits [B, C].

        PyTorch gets the same arrays, so a padding that the tokenizer would not use is judged fairly.
        """
        encoder = self.encoder
        by_length = sorted(self._encodings, key=lambda encoding: encoding.num_tokens)
        ragged = [by_length[place] for place in np.linspace(0, len(by_length) - 1, NUM_SHAPE_ROWS).astype(int)]
        sides: tuple[Side, Side] = ("right", "left")
        width = min(ragged[-1].num_tokens + 3, encoder.max_length)
        right, left = (encoder.pad(ragged, side, length=width) for side in sides)
        batches = {
            "1x1": encoder.pad([_stretched(by_length[0], 1)]),
            "1xlongest": encoder.pad([_stretched(by_length[-1], encoder.max_length)]),
            "right": right,
            "left": left,
            "mixed": {name: np.where(np.arange(len(ragged))[:, None] % 2, right[name], left[name]) for name in right},
        }
        return {name: (arrays, self.reference.run(arrays)) for name, arrays in batches.items()}

    def _logits(
        self,
        session: Session,
        encodings: Sequence[Encoding],
        batches: Sequence[NDArray[np.int64]],
        advance: Advance = ignore,
    ) -> NDArray[np.float32]:
        found = np.empty((len(encodings), len(self.encoder.classifier.labels)), np.float32)
        for batch in batches:
            found[batch] = session.run(self.encoder.pad([encodings[row] for row in batch]))
            advance(len(batch))
        return found

    def _record(
        self, alone: NDArray[np.float32], together: list[NDArray[np.float32]], shapes: dict[str, NDArray[np.float32]]
    ) -> Verification:
        """Return the record of a graph, given its logits [N, C] of rows alone and in batches, and of the odd shapes."""
        true, expected, temperature = self.rows.labels, self.expected, self.encoder.classifier.temperature
        labels, expected_labels = alone.argmax(axis=1), expected.argmax(axis=1)
        differs = labels != expected_labels
        ties = differs & _are_ties(expected)
        right, expected_right = labels == true, expected_labels == true
        scores = scores_from_logits(alone, temperature)
        changes = [np.abs(scores_from_logits(found, temperature) - scores).max() for found in together]
        flips = np.any([found.argmax(axis=1) != labels for found in together], axis=0) & ~_are_ties(alone)  # [N]
        shape_differences = {name: _finite(np.abs(found).max()) for name, found in shapes.items()}
        return Verification(
            split=self.rows.name,
            rows=len(self.rows),
            max_abs_logit_difference=max(_finite(np.abs(alone - expected).max()), *shape_differences.values()),
            label_agreement=float(1.0 - (differs & ~ties).mean()),
            num_ties=int(ties.sum()),
            accuracy=float(right.mean()),
            pytorch_accuracy=float(expected_right.mean()),
            macro_f1=_macro_f1(true, labels, expected.shape[1]),
            pytorch_macro_f1=_macro_f1(true, expected_labels, expected.shape[1]),
            accuracy_difference_interval=_paired_interval(right.astype(int) - expected_right.astype(int)),
            num_batch_flips=int(flips.sum()),
            max_abs_batch_probability_difference=float(np.nan_to_num(changes, nan=1.0).max()),
            shape_differences=shape_differences,
        )


def contract_problems(encoder: Encoder, reference: Reference) -> list[str]:
    """Return where the bundle's contract contradicts the model."""
    problems = []
    if encoder.classifier.labels != reference.labels:
        problems.append(
            f"label order: classifier.json has {list(encoder.classifier.labels)[:10]}, the model "
            f"{list(reference.labels)[:10]}"
        )
    if encoder.classifier.padding_side != reference.tokenizer.padding_side:
        problems.append(
            f"padding side: classifier.json has {encoder.classifier.padding_side}, the model's tokenizer "
            f"{reference.tokenizer.padding_side}"
        )
    return problems


def tokenizer_problem(encodings: Sequence[Encoding], reference: Reference, rows: LabelledRows) -> str | None:
    """Return how tokenizer.json, which is served, and the transformers tokenizer differ on the rows, or None.

    transformers 5 makes parts of some tokenizers anew from their class, whatever tokenizer.json says.
    """
    theirs, ours = reference.encode(rows.inputs)["input_ids"], [encoding.ids.tolist() for encoding in encodings]
    differing = [row for row in range(len(rows)) if theirs[row] != ours[row]]
    if not differing:
        return None
    row = differing[0]
    parts = zip(theirs[row], ours[row], strict=False)
    place = next((place for place, (one, other) in enumerate(parts) if one != other), 0)
    return (
        f"tokenizer: {len(differing)} of {len(rows)} rows of {rows.name} get other ids from transformers "
        f"{version('transformers')} than from tokenizer.json, such as {rows.inputs[row]!r:.60}: from token {place + 1} "
        f"on {theirs[row][place : place + 8]} and {ours[row][place : place + 8]}. {reference.tokenizer_remedy()}"
    )


def missed_bounds(record: Verification, gate: Gate) -> list[str]:
    """Return each bound of the gate that is missed."""
    missed = []
    if (bound := gate.max_abs_logit_difference) is not None and record.max_abs_logit_difference > bound:
        missed.append(f"|logit difference| up to {record.max_abs_logit_difference:.2g}, allowed {bound:g}")
    num_differing = (1.0 - record.label_agreement) * record.rows
    if (share := gate.min_label_agreement) is not None and num_differing > _allowed_rows(1.0 - share, record.rows):
        missed.append(f"label agreement {record.label_agreement:.2%}, needed {share:.2%}")
    drop = record.pytorch_accuracy - record.accuracy
    if (most := gate.max_accuracy_drop) is not None and drop * record.rows > _allowed_rows(most, record.rows):
        missed.append(f"accuracy {drop:.2%} below PyTorch's, allowed {most:.2%}")
    if gate.must_be_batch_invariant and record.num_batch_flips:
        missed.append(f"{record.num_batch_flips} labels depend on the batch")
    return missed


def _allowed_rows(share: float, num_rows: int) -> float:
    """Return how many rows a share allows: at least one if it is above 0, except on too few rows."""
    if share <= ROUNDING:
        return ROUNDING
    return max(share * num_rows, 1.0 if num_rows >= TOO_FEW_ROWS else 0.0) + ROUNDING


def _shape_problems(shapes: dict[str, NDArray[np.float32]], usual: NDArray[np.float32]) -> list[str]:
    """Return the shapes on which a graph is further from PyTorch [B, C] than on the held-out rows [N, C].

    Batches are compared by root mean square, which a few hard rows do not decide; single rows by their largest value.
    """
    problems = []
    for name, found in shapes.items():
        size = np.max if len(found) == 1 else lambda values: np.sqrt(np.square(values).mean())
        here, there = float(size(np.abs(found))), float(size(np.abs(usual)))
        if not np.isfinite(here):
            problems.append(f"NaN or infinite logits on {name}")
        elif here > SHAPE_ERROR * there + TIE:
            kind = "shape" if len(found) == 1 else "padding"
            problems.append(f"{kind} {name}: logits {here:.2g} from PyTorch's, on the held-out rows {there:.2g}")
    return problems


def _stretched(encoding: Encoding, length: int) -> Encoding:
    """Return an encoding with its tokens repeated, or cut, to a length."""
    type_ids = None if encoding.type_ids is None else np.resize(encoding.type_ids, length)
    return Encoding(np.resize(encoding.ids, length), type_ids, truncated=False)


def _slices(num_rows: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + BATCH_ROWS, num_rows)) for start in range(0, num_rows, BATCH_ROWS)]


def _are_ties(logits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows [N] of logits [N, C] have their top two logits tied."""
    top_two = np.sort(logits, axis=1)[:, -2:]
    ties: NDArray[np.bool_] = top_two[:, 1] - top_two[:, 0] <= TIE
    return ties


def _macro_f1(true: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, labels=range(num_classes), average="macro", zero_division=0))


def _paired_interval(differences: NDArray[np.int64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values -1, 0 and 1, one per row."""
    shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
    drawn = np.random.default_rng(SEED).multinomial(len(differences), shares, size=NUM_RESAMPLES)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / len(differences), [2.5, 97.5])
    return float(low), float(high)


def _finite(value: np.float32) -> float:
    """Return a number that JSON can hold; NaN is reported as a shortfall."""
    return float(value) if np.isfinite(value) else float(np.finfo(np.float32).max)
