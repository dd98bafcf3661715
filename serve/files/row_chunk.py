"""Some rows of a file on their way through the model: who is asked, who has an answer, who was refused and why."""

from dataclasses import dataclass
from typing import Any

from serve.contract.labels import scores_from_logits
from serve.encoder import TextInput
from serve.files.rows import Malformed
from serve.files.table import AnsweredRows
from serve.pipeline import Answers, num_characters


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
    id: Any
    reason: str
    values: tuple[Any, ...] | str
    """What it holds, as far as it could be read."""


class RowChunk:
    """Consecutive rows.

    Args:
        first: number of the first one, counted from 1.
        rows: their values.
        places: where to look in them.
    """

    def __init__(self, first: int, rows: list[tuple[Any, ...] | Malformed], places: RowInputs) -> None:
        self._first = first
        self._rows = rows
        self._places = places
        self._asked: list[int] = []
        self.inputs: list[TextInput] = []
        """What the model is asked."""
        for index, row in enumerate(rows):
            if not isinstance(row, Malformed) and not (places.id is not None and row[places.id] is None):
                self._asked.append(index)
                # The encoder judges what a text is; anything else comes back refused.
                text = row[places.text]
                self.inputs.append(text if places.text_pair is None else (text, row[places.text_pair]))

    def __len__(self) -> int:
        return len(self._rows)

    def sort_out(self, answers: Answers, temperature: float) -> tuple[AnsweredRows, list[Refusal]]:
        """Return the rows with an answer and those without, each in order; `answers` are those to `inputs`."""
        answered = [position for position in range(len(self._asked)) if position not in answers.refused]
        indices = [self._asked[position] for position in answered]
        values = [row for index in indices if not isinstance(row := self._rows[index], Malformed)]
        rows = AnsweredRows(
            [self._id(index) for index in indices],
            values,
            scores_from_logits(answers.logits[answered], temperature),
            answers.truncated[answered].tolist(),
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
        return None if isinstance(row, Malformed) else row[self._places.id]

    def _refusal(self, index: int, reason: str) -> Refusal:
        row = self._rows[index]
        return Refusal(self._first + index, self._id(index), reason, row.content if isinstance(row, Malformed) else row)


def num_row_characters(row: tuple[Any, ...] | Malformed) -> int:
    """Return the length of a row's texts."""
    return len(row.content) if isinstance(row, Malformed) else num_characters(row)
