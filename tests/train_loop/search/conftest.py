from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from labelled_rows import labelled_rows
from matplotlib.figure import Figure
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

Argv = Callable[..., list[str]]
SPACE = "learning_rate: {low: 1e-4, high: 3e-2, log: true}\nbatch_size: {choices: [8, 16]}\n"


@pytest.fixture(autouse=True)
def empty_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing into search.png, which takes as long as a trial; one test looks at it."""
    monkeypatch.setattr("train_loop.search.results._draw", lambda study: Figure())


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> Argv:
    """Return a function from more flags to the arguments of a search of two fields."""
    (tmp_path / "space.yaml").write_text(SPACE)
    rows = write_rows(labelled_rows(80))

    def build(*flags: str) -> list[str]:
        return [
            *(f"--space={tmp_path / 'space.yaml'}", f"--model_name={tiny_model}", f"--train_file={rows}"),
            *(f"--output_dir={tmp_path / 'runs'}", "--run_name=s", "--mixed_precision=no"),
            *("--epochs=2", "--batch_size=8", "--learning_rate=5e-3", *flags),
        ]

    return build


@pytest.fixture
def trials(tmp_path: Path) -> Iterator[Callable[..., list[FrozenTrial]]]:
    """Return a function that reads the trials of a study, as any program with Optuna can."""

    def read(folder: Path = tmp_path / "runs" / "s") -> list[FrozenTrial]:
        storage = JournalStorage(JournalFileBackend(str(folder / "journal")))
        return optuna.load_study(study_name="search", storage=storage).trials

    return read
