"""Verification of a graph against PyTorch: held-out rows, odd shapes, every padding, alone and in batches (promise E1).

What is verified is what will be served: the bundle's own tokenizer file and contract with serve's encoder and
session, against the run's model with its transformers tokenizer.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from export.agreement import agreement, rounding
from export.console import Advance
from export.graphs import Candidate
from export.odd_shapes import LONG, TIE, OddShape, odd_shapes
from export.reference import Reference
from export.rows import Rows
from serve.contract.bundle import Verification
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from serve.contract.long_texts import pool
from serve.encoder import Encoder
from serve.encoding import Encoding, length_sorted_batches, windows_of
from serve.session import Session

ROUNDING = 1e-6  # shares times rows are whole numbers to within this
BATCH_ROWS = 32  # rows of a batch in order of arrival; fewer where they are longer than `LONG`
MAX_TOKENS = 8_192
FEW_ROWS = 200  # fewer held-out rows prove little
TOO_FEW_ROWS = 50  # on fewer held-out rows every label must agree: a single exception would be more than 2 %


@dataclasses.dataclass(frozen=True)
class Gate:
    """The bounds that a variant must meet."""

    must_be_equal: bool = False  # every logit is PyTorch's, but for rounding
    min_label_agreement: float | None = None  # share of rows with PyTorch's label, or of all (row, label) decisions
    max_accuracy_drop: float | None = None
    max_ranking_drop: float | None = None
    """Several labels. Their F1 is no measure: its thresholds fit these very rows, so that any rounding lowers it."""
    max_change: float | None = None  # root mean square change of numbers, as a share of their spread
    max_spearman_difference: float | None = None
    must_be_batch_invariant: bool = True


GATES: dict[ProblemType, dict[str, Gate]] = {
    "single_label_classification": {
        "fp32": Gate(must_be_equal=True, min_label_agreement=1.0),
        "fp16": Gate(min_label_agreement=0.995),
        "int8": Gate(min_label_agreement=0.98, max_accuracy_drop=0.005),
    },
    "multi_label_classification": {
        "fp32": Gate(must_be_equal=True, min_label_agreement=1.0),
        "fp16": Gate(min_label_agreement=0.995),
        "int8": Gate(min_label_agreement=0.99, max_ranking_drop=0.005),
    },
    "regression": {
        "fp32": Gate(must_be_equal=True),
        "fp16": Gate(max_change=0.005, max_spearman_difference=0.003),
        "int8": Gate(max_change=0.02, max_spearman_difference=0.003),
    },
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
    rows: Rows
    expected: NDArray[np.float32]  # PyTorch's logits [N, C]
    canary: tuple[str, ...]

    def verify(
        self, session: Session, gate: Gate, advance: Advance = lambda done: None, *, right_padding_only: bool = False
    ) -> Verdict:
        """Compare a graph with PyTorch, and its answers to lone rows with those in batches.

        `advance` gets the number of windows done. With `right_padding_only`, no other padding is tried.

        Raises:
            InputError: contract and model have different numbers of labels, or tokenizer.json produces ids that the
                model does not have, or others than the transformers tokenizer.
        """
        problems = contract_problems(self.encoder, self.reference)
        if len(self.encoder.classifier.labels) != len(self.reference.labels):
            raise InputError("; ".join(problems))  # logits cannot be compared
        lengths = [window.num_tokens for window in self._windows]
        alone = self._logits(session, list(np.arange(len(lengths))[:, None]), advance)  # [N, C]
        by_length = length_sorted_batches(lengths, MAX_TOKENS, BATCH_ROWS)
        batch_rows = min(BATCH_ROWS, max(2, BATCH_ROWS * LONG // max(lengths)))
        in_order = np.split(np.arange(len(lengths)), range(batch_rows, len(lengths), batch_rows))
        together = [self._logits(session, batches) for batches in (in_order, by_length)]
        shapes = [each for each in self._odd_shapes if each.is_right_padded or not right_padding_only]
        differences = {each.name: session.run(each.arrays) - each.expected for each in shapes}
        record = agreement(self.rows, self.encoder.classifier, self.expected, alone, together, differences)
        if not all(np.isfinite(found).all() for found in (alone, *together)):
            problems.append("NaN or infinite logits")
        tolerance = rounding(self.expected, self.encoder.classifier)
        found = (each.problem(differences[each.name], alone - self.expected, tolerance) for each in shapes)
        problems += [problem for problem in found if problem is not None]
        again = session.run(shapes[0].arrays) - shapes[0].expected
        if np.abs(again - differences[shapes[0].name]).max() > tolerance:
            problems.append("other logits each time: a dropout is left on")
        problems += missed_bounds(record, gate, tolerance)
        inputs = self.canary[0] if len(self.canary) == 1 else (self.canary[0], self.canary[1])
        side = self.encoder.classifier.truncation_side
        canary_logits = session.run(self.encoder.pad(self.encoder.encode([inputs], side)))[0]  # of one window
        return Verdict(record, problems, tuple(float(value) for value in np.nan_to_num(canary_logits)))

    def odd_shapes(self, *, right_padding_only: bool = False) -> list[dict[str, NDArray[np.int64]]]:
        """Return inputs [B, T]: 1 x 1, 1 x longest, and ragged batches with each padding."""
        return [each.arrays for each in self._odd_shapes if each.is_right_padded or not right_padding_only]

    @property
    def num_windows(self) -> int:
        """Inputs of the model that the rows are read in."""
        return len(self._windows)

    @functools.cached_property
    def _windows(self) -> list[Encoding]:
        return windows_of(self._encodings)

    @functools.cached_property
    def _encodings(self) -> list[Encoding]:
        encodings = self.encoder.encode(self.rows.inputs)
        unknown = max(int(window.ids.max()) for window in windows_of(encodings))
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
    def _odd_shapes(self) -> tuple[OddShape, ...]:
        return odd_shapes(self.encoder, self._windows, self.reference)

    def _logits(
        self, session: Session, batches: Sequence[NDArray[np.int64]], advance: Advance = lambda done: None
    ) -> NDArray[np.float32]:
        """Return the logits of the rows [N, C] from batches of their windows."""
        classifier = self.encoder.classifier
        found = np.empty((self.num_windows, len(classifier.labels)), np.float32)
        for batch in batches:
            found[batch] = session.run(self.encoder.pad([self._windows[window] for window in batch]))
            advance(len(batch))
        num_windows = np.array([len(encoding.windows) for encoding in self._encodings])
        return pool(found, num_windows, classifier.long_texts.pooling)


def contract_problems(encoder: Encoder, reference: Reference) -> list[str]:
    """Return where the bundle's contract contradicts the model."""
    classifier = encoder.classifier
    compared = {
        "problem type": (classifier.problem_type, reference.problem_type),
        "label order": (classifier.labels, reference.labels),
        "padding side": (classifier.padding_side, reference.tokenizer.padding_side),
    }
    return [
        f"{what}: classifier.json has {ours!s:.400}, the model {theirs!s:.400}"
        for what, (ours, theirs) in compared.items()
        if ours != theirs
    ]


def tokenizer_problem(encodings: Sequence[Encoding], reference: Reference, rows: Rows) -> str | None:
    """Return how tokenizer.json, which is served, and the transformers tokenizer differ on the rows, or None.

    transformers 5 makes parts of some tokenizers anew from their class, whatever tokenizer.json says.
    """
    encoded = reference.encode(rows.inputs)
    read = iter(encoded.input_ids)
    theirs = [list(itertools.chain(*itertools.islice(read, count))) for count in encoded.num_windows]
    ours = [[token for window in encoding.windows for token in window.ids.tolist()] for encoding in encodings]
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


def missed_bounds(record: Verification, gate: Gate, tolerance: float = TIE) -> list[str]:
    """Return each bound of the gate that is missed; logits this close are equal."""
    missed, numbers = [], record.numbers
    if gate.must_be_equal and record.max_abs_logit_difference > tolerance:
        missed.append(f"|logit difference| up to {record.max_abs_logit_difference:.2g}, allowed {tolerance:.2g}")
    for what, agrees in (("label", record.label_agreement), ("abstention", record.abstention_agreement)):
        if agrees is None or (share := gate.min_label_agreement) is None:
            continue
        if (1.0 - agrees) * record.rows > _allowed_rows(1.0 - share, record.rows):
            missed.append(f"{what} agreement {agrees:.2%}, needed {share:.2%}")
    for what, ours, theirs, most in (
        ("accuracy", record.accuracy, record.pytorch_accuracy, gate.max_accuracy_drop),
        ("ranking precision", record.ranking_precision, record.pytorch_ranking_precision, gate.max_ranking_drop),
    ):
        if ours is None or theirs is None or most is None:
            continue
        if (theirs - ours) * record.rows > _allowed_rows(most, record.rows):
            missed.append(f"{what} {theirs - ours:.2%} below PyTorch's, allowed {most:.2%}")
    if numbers is not None:
        if (most := gate.max_change) is not None and numbers.change > most:
            missed.append(f"numbers change by {numbers.change:.2%} of their spread, allowed {most:.2%}")
        change = abs((numbers.spearman or 0.0) - (numbers.pytorch_spearman or 0.0))
        if (most := gate.max_spearman_difference) is not None and change > most:
            found = f"{numbers.spearman:.4f}, PyTorch's {numbers.pytorch_spearman:.4f}"
            missed.append(f"Spearman {found}: they may differ by {most:g}")
    if gate.must_be_batch_invariant and record.num_batch_flips:
        missed.append(f"{record.num_batch_flips} {'labels' if numbers is None else 'numbers'} depend on the batch")
    return missed


def _allowed_rows(share: float, num_rows: int) -> float:
    """Return how many rows a share allows: at least one if it is above 0, except on too few rows."""
    if share <= ROUNDING:
        return ROUNDING
    return max(share * num_rows, 1.0 if num_rows >= TOO_FEW_ROWS else 0.0) + ROUNDING
