"""The study: killed, shared, repeated, and refused for another search."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from distributed import on_processes
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from train_loop.search.__main__ import main


def search(folder: Path, arguments: list[str], *, workers: int, kills: int, longest_s: float) -> tuple[int, float]:
    """Run a search in several processes, with kills; return how many hit, and the seconds that all took."""
    folder.mkdir()
    how: dict[str, Any] = {"num_workers": workers, "num_kills": kills, "longest_s": longest_s}
    (found,) = on_processes(1, "search_workers:search", {"folder": str(folder), "arguments": arguments, **how})
    assert "Traceback" not in "".join(log.read_text() for log in folder.glob("worker_*.log"))
    hits, seconds = found
    return hits, seconds


def facts(found: list[Any]) -> list[tuple[Any, ...]]:
    return [(each.number, each.state.name, each.value, each.params, each.intermediate_values) for each in found]


def test_a_study_that_is_killed_again_and_again_ends_like_one_that_is_not(
    tmp_path: Path, argv: Any, trials: Any
) -> None:
    flags = ("--trials=6", "--epochs=2", "--eval_every=4")
    _, seconds = search(tmp_path / "calm", argv(*flags, "--run_name=calm"), workers=1, kills=0, longest_s=0)
    hits, _ = search(tmp_path / "killed", argv(*flags), workers=1, kills=7, longest_s=seconds / 6)
    assert hits >= 3
    calm, killed = trials(tmp_path / "runs" / "calm"), trials()
    assert [each.number for each in killed] == list(range(6))
    assert all(each.state.is_finished() for each in killed)
    assert facts(killed) == facts(calm)


def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(tmp_path: Path, argv: Any, trials: Any) -> None:
    hits, _ = search(tmp_path / "two", argv("--trials=10", "--epochs=2"), workers=2, kills=2, longest_s=1.5)
    assert hits >= 1
    found = trials()
    assert [each.number for each in found] == list(range(10))
    assert {each.state.name for each in found} <= {"COMPLETE", "PRUNED"}
    assert len({str(each.params) for each in found}) > 8  # not the same ones twice
    logs = [(tmp_path / "two" / f"worker_{number}.log").read_text() for number in (0, 1)]
    ended = [line.split()[1] for log in logs for line in log.splitlines() if " trials left" in line]
    assert len(ended) == len(set(ended))  # a kill may come between the end of a trial and its line
    assert len(ended) >= 8
    assert all(" trials left" in log for log in logs)
    assert sum("Next: accelerate launch" in log for log in logs) >= 1


@pytest.mark.parametrize("minutes", ["100", "0.00001"])
def test_what_another_process_holds_is_left_to_it_and_taken_over_once_it_is_gone(
    tmp_path: Path, argv: Any, trials: Any, minutes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv("--trials=1", "--epochs=1")) == 0
    folder = tmp_path / "runs" / "s"
    (folder / "best.yaml").unlink()
    storage = JournalStorage(JournalFileBackend(str(folder / "journal")))
    optuna.load_study(study_name="search", storage=storage).ask()  # killed before its values were drawn
    with FileLock(folder / "locks" / "trial_0001"):
        assert main(argv("--trials=2", "--epochs=1", f"--minutes={minutes}")) == 0
        assert "Other processes are at work" in capsys.readouterr().out
        assert not (folder / "best.yaml").exists()
    assert main(argv("--trials=2", "--epochs=1")) == 0
    assert [each.state.name for each in trials()] == ["COMPLETE"] * 2
    assert set(trials()[1].params) == {"learning_rate", "batch_size"}
    assert (folder / "best.yaml").exists()


def test_the_same_seed_suggests_the_same_and_another_one_others(tmp_path: Path, argv: Any, trials: Any) -> None:
    found = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main(argv("--trials=4", "--epochs=1", f"--seed={seed}", f"--run_name={name}")) == 0
        found[name] = [each.params for each in trials(tmp_path / "runs" / name)]
    assert found["a"] == found["b"]
    assert found["a"][0] == found["c"][0] == {"learning_rate": 5e-3, "batch_size": 8}
    assert found["a"][1:] != found["c"][1:]


def test_more_trials_go_on_with_a_study_and_another_configuration_is_refused(
    tmp_path: Path, argv: Any, trials: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv("--trials=2", "--epochs=1")) == 0
    assert main(argv("--trials=3", "--epochs=1")) == 0
    assert len(trials()) == 3
    capsys.readouterr()
    assert main(argv("--trials=4", "--epochs=2")) == 2
    message = capsys.readouterr().err
    assert "is of another search: epochs is 1 there, 2 here. Restore that, or pass --run_name NEW" in message
    (tmp_path / "space.yaml").write_text("batch_size: {choices: [8, 4]}")
    assert main(argv("--trials=4", "--epochs=1")) == 2
    assert "--space is {" in capsys.readouterr().err
    assert len(trials()) == 3


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path, argv: Any, trials: Any) -> None:
    assert main(argv("--trials=1", "--epochs=1")) == 0
    with (tmp_path / "runs" / "s" / "journal").open("a") as file:
        file.write('{"op_code": 4, "worker')
    assert main(argv("--trials=2", "--epochs=1")) == 0
    assert len(trials()) == 2
