"""Some rows of a file on their way through the model: who is asked, who has an answer, who was refused and why."""

from dataclasses import dataclass
from typing import Any

from serve.contract.labels import scores_from_logits
from serve.encoder import TextInput, is_blank, num_characters
from serve.files.row import Lines, Malformed, Row
from serve.files.table import AnsweredRows
from serve.pipeline import Answers


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Where in a row's values the model's input and the row's name stand."""

    text: int
    text_pair: int | None
    id: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row without an answer."""

    row: int
    """Its number, counted from 1."""
    lines: Lines | None
    """Where it stands in the file; None where that has no lines."""
    id: Any
    reason: str
    values: tuple[Any, ...] | str
    """What it holds, as far as it could be read."""

    @property
    def num_lines(self) -> int:
        """Lines of the file that it takes; 1 where that has none."""
        return 1 if self.lines is None else self.lines[1] - self.lines[0] + 1


class RowChunk:
    """Consecutive rows.

    Args:
        first: number of the first one, counted from 1.
        rows: what was read.
        places: where to look in them.
    """

    def __init__(self, first: int, rows: list[Row | Malformed], places: RowInputs) -> None:
        self._first = first
        self._rows = rows
        self._places = places
        self._asked: list[int] = []
        self.inputs: list[TextInput] = []
        """What the model is asked."""
        for index, row in enumerate(rows):
            if not isinstance(row, Malformed) and not (places.id is not None and row.values[places.id] is None):
                self._asked.append(index)
                # The encoder judges what a text is; anything else comes back refused.
                text = row.values[places.text]
                self.inputs.append(text if places.text_pair is None else (text, row.values[places.text_pair]))

    def __len__(self) -> int:
        return len(self._rows)

    def sort_out(self, answers: Answers, temperature: float) -> tuple[AnsweredRows, list[Refusal]]:
        """Return the rows with an answer and those without, each in order; `answers` are those to `inputs`."""
        answered = [position for position in range(len(self._asked)) if position not in answers.refused]
        indices = [self._asked[position] for position in answered]
        values = [row.values for index in indices if not isinstance(row := self._rows[index], Malformed)]
        rows = AnsweredRows(
            [self._id(index) for index in indices],
            values,
            scores_from_logits(answers.logits[answered], temperature),
            answers.truncated[answered].tolist(),
            sum(is_blank(self.inputs[position]) for position in answered),
        )
        reasons = {self._asked[position]: error.reason for position, error in answers.refused.items()}
        for index in set(range(len(self._rows))) - set(self._asked):
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
        found = row.content if isinstance(row, Malformed) else row.values
        return Refusal(self._first + index, row.lines, self._id(index), reason, found)


def num_row_characters(row: Row | Malformed) -> int:
    """Return the length of a row's texts."""
    return len(row.content) if isinstance(row, Malformed) else num_characters(row.values)
