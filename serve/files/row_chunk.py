"""A chunk of rows on its way through the model: which are classified, and which are refused and why."""

from dataclasses import dataclass
from typing import Any

from serve.contract.classifier import Classifier
from serve.contract.rows.row import Lines, Malformed, Row
from serve.encoder import TextInput, is_blank, num_characters, without_surrogates
from serve.files.table import AnsweredRows
from serve.pipeline import Answers


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Positions of the model's input and of the id in a row's values."""

    text: int
    text_pair: int | None
    id: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row without an answer."""

    row: int  # its number, counted from 1
    lines: Lines | None  # its first and last line in the file; None where that has no lines
    id: Any
    reason: str
    values: tuple[Any, ...] | str  # its values, or its raw text where they could not be read

    @property
    def num_lines(self) -> int:
        """Lines of the file that it takes; 1 where that has none."""
        return 1 if self.lines is None else self.lines[1] - self.lines[0] + 1


class RowChunk:
    """Consecutive rows; `first` is the number of the first one, counted from 1."""

    def __init__(self, first: int, rows: list[Row | Malformed], places: RowInputs) -> None:
        self._first = first
        self._rows = rows
        self._places = places
        self._classified: list[int] = []
        self.inputs: list[TextInput] = []  # what the model classifies
        for index, row in enumerate(rows):
            if not isinstance(row, Malformed) and not (places.id is not None and row.values[places.id] is None):
                self._classified.append(index)
                # The encoder decides what is a text, and refuses anything else.
                text = row.values[places.text]
                self.inputs.append(text if places.text_pair is None else (text, row.values[places.text_pair]))

    def __len__(self) -> int:
        return len(self._rows)

    def sort_out(self, answers: Answers, classifier: Classifier) -> tuple[AnsweredRows, list[Refusal]]:
        """Return the rows with an answer and those without, each in order; `answers` belong to `inputs`."""
        answered = [position for position in range(len(self._classified)) if position not in answers.refused]
        indices = [self._classified[position] for position in answered]
        values = [row.values for index in indices if not isinstance(row := self._rows[index], Malformed)]
        scores = classifier.scores(answers.logits[answered])
        rows = AnsweredRows(
            [self._id(index) for index in indices],
            values,
            scores,
            classifier.decisions(scores),
            [len(answers.windows.get(position, (None,))) for position in answered],
            answers.truncated[answered].tolist(),
            sum(is_blank(self.inputs[position]) for position in answered),
        )
        reasons = {self._classified[position]: error.reason for position, error in answers.refused.items()}
        for index in set(range(len(self._rows))) - set(self._classified):
            row = self._rows[index]
            reasons[index] = row.reason if isinstance(row, Malformed) else "its id is null"
        return rows, [self._refusal(index, reasons[index]) for index in sorted(reasons)]

    def _id(self, index: int) -> Any:
        row = self._rows[index]
        if self._places.id is None:
            return self._first + index
        return None if isinstance(row, Malformed) else row.values[self._places.id]

    def _refusal(self, index: int, reason: str) -> Refusal:
        row = self._rows[index]
        found = without_surrogates(row.content) if isinstance(row, Malformed) else row.values
        return Refusal(self._first + index, row.lines, self._id(index), reason, found)


def num_row_characters(row: Row | Malformed) -> int:
    """Return the length of a row's texts."""
    return len(row.content) if isinstance(row, Malformed) else num_characters(row.values)
