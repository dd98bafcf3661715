"""Odd shapes to verify a graph on: 1 x 1, 1 x longest, and ragged batches with right, left and mixed padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.reference import Reference
from serve.contract.classifier import Side
from serve.encoder import Encoder
from serve.encoding import Encoding

TIE = 1e-4  # logits this close are equal, but for rounding
NUM_ROWS, LONG = 64, 512
"""Rows per padding, of up to so many tokens; of longer ones as many as attention computes in the same memory."""
SHAPE_ERROR = 4.0
"""How much further from PyTorch a graph may be on another padding or shape than on the held-out rows, as a factor.

It may be even further (left padding moves positions, for which integers were not calibrated: 7 times was seen) while
it is at most half as far as PyTorch itself would be if it ignored where the padding is."""
IGNORED_SHARE = 0.5

Arrays = dict[str, NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class OddShape:
    """Inputs, and PyTorch's answers to the same arrays: a padding that the tokenizer would not use is judged fairly."""

    name: str
    arrays: Arrays  # [B, T]
    expected: NDArray[np.float32]  # PyTorch's logits [B, C]
    ignored: float = 0.0
    """Root mean square change of PyTorch's logits if it takes the mask for one of right padding, or for none."""

    @property
    def is_right_padded(self) -> bool:
        return self.name not in ("left", "mixed")

    def problem(
        self, differences: NDArray[np.float32], usual: NDArray[np.float32], tolerance: float = TIE
    ) -> str | None:
        """Return what is wrong with a graph that is so far from PyTorch here [B, C], and on the held-out rows [N, C].

        Logits are equal within the tolerance. Batches are compared by root mean square, which a few hard rows do not
        decide; single rows by the largest value.
        """
        is_row = len(differences) == 1
        here, there = (float(np.abs(each).max()) if is_row else _size(each) for each in (differences, usual))
        if not np.isfinite(here):
            return f"NaN or infinite logits on {self.name}"
        if here <= SHAPE_ERROR * there + tolerance or here <= IGNORED_SHARE * self.ignored:
            return None
        kind = "shape" if is_row else "padding"
        return f"{kind} {self.name}: logits {here:.2g} from PyTorch's, on the held-out rows {there:.2g}"


def odd_shapes(encoder: Encoder, encodings: Sequence[Encoding], reference: Reference) -> tuple[OddShape, ...]:
    """Return the shapes, made of some encodings."""
    by_length = sorted(encodings, key=lambda encoding: encoding.num_tokens)
    width = min(by_length[-1].num_tokens + 3, encoder.max_length)
    num_rows = min(NUM_ROWS, max(2, NUM_ROWS * LONG**2 // width**2))
    ragged = [by_length[place] for place in np.linspace(0, len(by_length) - 1, num_rows).astype(int)]
    sides: tuple[Side, Side] = ("right", "left")
    right, left = (encoder.pad(ragged, side, length=width) for side in sides)
    is_odd = np.arange(num_rows)[:, None] % 2
    paddings = {
        "right": right,
        "left": left,
        "mixed": {name: np.where(is_odd, right[name], left[name]) for name in right},
    }
    rows = {"1x1": (by_length[0], 1), "1xlongest": (by_length[-1], encoder.max_length)}
    side = encoder.classifier.padding_side
    stretched = {name: encoder.pad([_stretched(row, length, side)]) for name, (row, length) in rows.items()}
    shapes = [OddShape(name, arrays, reference.run(arrays)) for name, arrays in stretched.items()]
    for name, arrays in paddings.items():
        expected = reference.run(arrays)
        ignored = min(_size(reference.run(each) - expected) for each in _misread(arrays))
        shapes.append(OddShape(name, arrays, expected, ignored))
    return tuple(shapes)


def _misread(arrays: Arrays) -> list[Arrays]:
    """Return arrays with the masks of a model that ignores padding, or where it is."""
    mask = arrays["attention_mask"]
    lengths = (np.arange(mask.shape[1]) < mask.sum(axis=1, keepdims=True)).astype(np.int64)
    masks = [np.ones_like(mask), *([] if (lengths == mask).all() else [lengths])]
    return [arrays | {"attention_mask": each} for each in masks]


def _size(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _stretched(encoding: Encoding, length: int, padding_side: Side) -> Encoding:
    """Return an encoding with its tokens repeated, or cut, to a length; the token that the head reads keeps its place.

    Padding on the left leaves it last, as XLNet's [CLS]. The last layer's integers are made for no other token.
    """
    step = 1 if padding_side == "right" else -1

    def stretch(values: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.resize(values[::step], length)[::step]

    type_ids = None if encoding.type_ids is None else stretch(encoding.type_ids)
    return Encoding(stretch(encoding.ids), type_ids, truncated=False)
