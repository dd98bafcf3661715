"""A chunk of rows on its way through the model: which are classified, and which are refused and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.contract.rows.json_text import json_text
from serve.contract.rows.row import Lines, Malformed, Row, Values
from serve.encoder import ItemError, TextInput, num_characters, without_surrogates


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
    values: Values | str  # its values, or its raw text where they could not be read

    @property
    def num_lines(self) -> int:
        """Lines of the file that it takes; 1 where that has none."""
        return 1 if self.lines is None else self.lines[1] - self.lines[0] + 1

    def as_line(self, columns: Sequence[str]) -> str:
        """Return it as a line of a file of rejects, one JSON object; its values are of these columns.

        `row` counts rows, `line` and `last_line` count lines of the file, from 1: blank lines are not rows, and a row
        of csv may take several lines.
        """
        first, last = self.lines or (None, None)
        content = {
            "row": self.row,
            "line": first,
            "last_line": last,
            "id": self.id,
            "reason": self.reason,
            "input": self.values if isinstance(self.values, str) else dict(zip(columns, self.values, strict=True)),
        }
        return json_text(content) + "\n"


class RowChunk:
    """Consecutive rows; `first` is the number of the first one, counted from 1."""

    def __init__(self, first: int, rows: list[Row | Malformed], places: RowInputs) -> None:
        self._first, self._rows, self._places = first, rows, places
        self._classified: list[tuple[int, Row]] = []  # places in the chunk, and rows
        self._reasons: dict[int, str] = {}  # place of each row that is not classified -> why
        self.inputs: list[TextInput] = []  # what the model classifies
        for place, row in enumerate(rows):
            if isinstance(row, Malformed):
                self._reasons[place] = row.reason
            elif places.id is not None and row.values[places.id] is None:
                self._reasons[place] = "its id is null"
            else:
                self._classified.append((place, row))
                # The encoder decides what is a text, and refuses anything else.
                text = row.values[places.text]
                self.inputs.append(text if places.text_pair is None else (text, row.values[places.text_pair]))

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of(self, positions: Sequence[int]) -> tuple[list[Any], list[Values]]:
        """Return the ids and the values of the rows that some of `inputs` are of."""
        found = [self._classified[position] for position in positions]
        return [self._id(*each) for each in found], [row.values for _, row in found]

    def refusals(self, refused: Mapping[int, ItemError]) -> list[Refusal]:
        """Return the rows without an answer, in order; `refused` are those of `inputs` that the model did not take."""
        reasons = self._reasons | {self._classified[position][0]: error.reason for position, error in refused.items()}
        found = []
        for place in sorted(reasons):
            row = self._rows[place]
            values = without_surrogates(row.content) if isinstance(row, Malformed) else row.values
            found.append(Refusal(self._first + place, row.lines, self._id(place, row), reasons[place], values))
        return found

    def _id(self, place: int, row: Row | Malformed) -> Any:
        if self._places.id is None:
            return self._first + place
        return None if isinstance(row, Malformed) else row.values[self._places.id]


def num_row_characters(row: Row | Malformed) -> int:
    """Return the length of a row's texts."""
    return len(row.content) if isinstance(row, Malformed) else num_characters(row.values)
