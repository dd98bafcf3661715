import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from labelled_rows import labelled_rows
from torch import nn

from bench.harness.results import Measurement, read_results
from bench.harness.worker import Message, Session
from bench.training.contenders import STEPS_OF_REPEAT, main_entrants, scaling_entrants
from bench.training.loop_worker import OurLoop
from bench.training.pace import Finished, PacedTraining
from bench.training.run import TrainingOptions, measure_passes, prepare, run
from bench.training.trainer_worker import HuggingFaceTrainer
from serve.contract.errors import InputError
from train_loop.command_line import write_yaml
from train_loop.config import TrainConfig
from train_loop.run.progress import StepReport


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids * attention_mask


class FakeSession(Session):
    """Has its commands ready, and keeps the answers."""

    def __init__(self, *commands: Message) -> None:
        self.commands = list(commands)
        self.answers: list[Message] = []

    def next_command(self) -> Message | None:
        return self.commands.pop(0) if self.commands else None

    def answer(self, **content: Any) -> None:
        self.answers.append(content)


class Steps(PacedTraining):
    """Makes steps of one row of 3 tokens padded to 4, and judges itself by their number."""

    def train(self, folder: str) -> None:
        self.model = model = Model()
        unused = SimpleNamespace(device=torch.device("cpu"), backward=None, clip_grad_norm_=None, step=None)
        self.attach(unused, model, unused)
        model.register_forward_pre_hook(HuggingFaceTrainer._count.__get__(self), with_kwargs=True)
        self.steps = 0
        self.begin()
        while True:
            model(input_ids=torch.ones(1, 4), attention_mask=torch.tensor([[1, 1, 1, 0]]))
            self.steps += 1
            self.step_done()

    def held_out_loss(self) -> float:
        return float(self.steps)


def paced(*commands: Message) -> tuple[list[Message], int]:
    session, worker = FakeSession(*commands), Steps()
    worker.serve(session)
    return session.answers, worker.steps


def test_a_loop_does_the_steps_asked_for_and_waits_in_between() -> None:
    answers, steps = paced({"verb": "start"}, {"verb": "repeat", "steps": 2}, {"verb": "repeat", "steps": 3})
    started, first, second = answers
    assert started["peak_memory_mib"] > 1
    assert steps == 5
    assert first["padded_tokens"] == 8
    assert (first["amount"], second["amount"]) == (6, 9)
    assert first["seconds"] > 0


def test_the_loss_is_taken_after_the_steps_asked_for() -> None:
    answers, steps = paced({"verb": "loss", "steps": 4}, {"verb": "repeat", "steps": 2})
    assert answers[0]["loss"] == 4.0
    assert steps == 6


def test_a_split_times_only_its_parts() -> None:
    answers, _ = paced({"verb": "split", "steps": 2}, {"verb": "repeat", "steps": 1}, {"verb": "split", "steps": 1})
    for answer in (answers[0], answers[2]):
        assert 0 < answer["split"]["forward"] <= answer["seconds"]
        assert answer["split"]["backward"] == 0.0


def test_evaluation_is_not_counted() -> None:
    class Evaluating(Steps):
        def held_out_loss(self) -> float:
            self.model.eval()
            self.model(input_ids=torch.ones(2, 3), attention_mask=torch.ones(2, 3))
            self.model.train()
            return 0.5

    session = FakeSession({"verb": "loss", "steps": 1}, {"verb": "repeat", "steps": 1})
    Evaluating().serve(session)
    assert [answer["amount"] for answer in session.answers] == [3, 3]


def test_our_loop_counts_by_its_reports_as_replayed_passes_run_no_python() -> None:
    """So on a GPU, where a micro-batch without padding has no mask to count by either."""
    worker, session = OurLoop({}), FakeSession({"verb": "split", "steps": 2})
    worker._session = session
    worker._training = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))  # type: ignore[assignment]
    graphs, unused = SimpleNamespace(run=lambda: None), SimpleNamespace(device=torch.device("cpu"))
    unused.step = unused.clip_grad_norm_ = lambda: None
    worker.attach(unused, Model(), unused, graphs)  # type: ignore[arg-type]
    report = StepReport(
        step=1, epoch=0.1, loss=0.5, learning_rate=1e-3, gradient_norm=1.0, updated=True,
        num_rows=4, num_tokens=30, num_padded_tokens=32, seconds=0.1,
    )  # fmt: skip
    worker.begin()
    graphs.run()
    worker.after_step(report)
    with pytest.raises(Finished):
        worker.after_step(report)
    (answer,) = session.answers
    assert (answer["amount"], answer["padded_tokens"]) == (60.0, 64.0)
    assert answer["split"]["backward"] > 0.0 == answer["split"]["forward"]


class FakeArena:
    """Takes every contender's steps as done."""

    def __init__(self, names: list[str]) -> None:
        self.alive = names
        self.split_steps: dict[str, int] = {}
        self.answers: dict[str, Any] = {}
        self.facts: dict[str, dict[str, float]] = {name: {} for name in names}

    def measure(self, *_: Any, **__: Any) -> list[Measurement]:
        return []

    def call(self, name: str, verb: str, **arguments: int) -> Message:
        if verb == "split":
            self.split_steps[name] = arguments["steps"]
        return {"split": {"forward": 1.0}, "seconds": 4.0, "loss": 0.5, "peak_memory_mib": 10.0}

    def add_facts(self, name: str, facts: dict[str, float]) -> None:
        self.facts[name] |= facts


def test_the_steps_of_contenders_grouped_by_length_are_split_over_a_whole_group() -> None:
    names = ["rawloop", "Trainer best", "Trainer best (again)", "Trainer grouped fp32", "Trainer padded fp32"]
    arena = FakeArena(names)
    measure_passes(arena, TrainingOptions(run=Path("run")), {})  # type: ignore[arg-type]
    assert [arena.split_steps[name] for name in names] == [50, 50, 50, 50, 3]
    assert arena.facts["rawloop"]["forward_share"] == 0.25
    assert arena.facts["rawloop"]["other_share"] == 0.75
    arena = FakeArena(names)
    measure_passes(arena, TrainingOptions(run=Path("run"), quick=True), {})  # type: ignore[arg-type]
    assert [arena.split_steps[name] for name in names] == [12, 12, 12, 2, 2]
    assert arena.facts["Trainer padded fp32"]["held_out_loss"] == 0.5


def test_the_entrants_differ_only_in_what_they_state() -> None:
    config = {"model_name": "m", "mixed_precision": "auto", "batch_size": 16}
    settings = {e.name: dict(e.spec.settings) for e in main_entrants(config)}
    for name in ("Trainer best", "Trainer grouped fp32", "Trainer dynamic fp32", "Trainer padded fp32"):
        assert settings[name]["config"] == config
    scaled = scaling_entrants(config, num_cores=2)
    assert [e.name for e in scaled] == ["1 process", "2 processes", "2 micro-batches", "4 micro-batches"]
    assert [e.spec.num_processes for e in scaled] == [1, 2, 1, 1]


def test_on_gpus_the_trainer_has_its_bf16_and_each_process_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def names_with(num_gpus: int) -> tuple[set[str], list[str]]:
        monkeypatch.setattr("bench.training.contenders.num_gpus", lambda: num_gpus)
        config = {"batch_size": 16}
        scaled = [entrant.name for entrant in scaling_entrants(config, num_cores=4) if "process" in entrant.name]
        assert {entrant.name for entrant in main_entrants(config)} <= STEPS_OF_REPEAT.keys()
        return {entrant.name for entrant in main_entrants(config)}, scaled

    without, on_cores = names_with(0)
    assert on_cores == ["1 process", "2 processes", "4 processes"]
    with_one, on_one = names_with(1)
    assert with_one - without == {"Trainer bf16"}
    assert on_one == ["1 process"]
    assert names_with(2)[1] == ["1 process", "2 processes"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "--rows must be at least 1"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"cores": [9999]}, "this process may use"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingOptions(run=Path("run"), **fields)


def test_contenders_train_with_the_default_rates_of_the_run(tiny_model: Path, write_rows: Any, tmp_path: Path) -> None:
    """The rate that a null one stands for is the last layer's; those below have less."""
    recipe = tmp_path / "recipe.yaml"
    write_yaml(recipe, TrainConfig(model_name=str(tiny_model), train_file=str(write_rows(labelled_rows(130)))))
    config, work = prepare(TrainingOptions(run=recipe), tmp_path)
    assert (config["layer_decay"], work["layer_decay"]) == (0.8, 0.8)
    assert config["learning_rate"] == work["learning_rate"] > 5e-5


def test_rows_read_in_windows_count_what_contenders_read_of_them(
    tiny_model: Path, write_rows: Any, tmp_path: Path
) -> None:
    recipe, rows = tmp_path / "recipe.yaml", write_rows(labelled_rows(130))
    fields = {"long_texts": "windows", "max_length": 8}
    write_yaml(recipe, TrainConfig(model_name=str(tiny_model), train_file=str(rows), **fields))
    _, work = prepare(TrainingOptions(run=recipe), tmp_path)
    assert 4 < float(work["mean_tokens_of_a_row"]) < 8


def test_rows_with_several_labels_are_refused(tiny_model: Path, write_rows: Any, tmp_path: Path) -> None:
    recipe, rows = tmp_path / "recipe.yaml", write_rows(labelled_rows(60, ("a,b", "c")))
    write_yaml(recipe, TrainConfig(model_name=str(tiny_model), train_file=str(rows), label_separator=","))
    with pytest.raises(InputError, match=r"recipe.yaml: rows of multi_label_classification; name a model and rows"):
        prepare(TrainingOptions(run=recipe), tmp_path)


def test_our_loop_and_the_trainer_are_measured_on_the_same_rows(
    tiny_model: Path, write_rows: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    rows = write_rows(labelled_rows(130))
    fields = {"max_length": 24, "learning_rate": 1e-3, "layer_decay": 0.5}
    write_yaml(recipe, TrainConfig(model_name=str(tiny_model), train_file=str(rows), **fields))
    options = TrainingOptions(
        run=recipe, batch_size=1, quick=True, threads=1,
        contenders=["rawloop fp32", "Trainer dynamic fp32"], output=tmp_path / "out",
    )  # fmt: skip
    run(options, "python -m bench training")
    results = read_results(tmp_path / "out")
    ours, trainer = results.measurements
    assert [c.status for c in results.contenders] == ["measured", "measured"], [c.reason for c in results.contenders]
    assert ours.facts["padding_share"] == 0.0  # one row a step
    assert results.work["layer_decay"] == 0.5
    assert "104 rows are fewer than 200 batches of 1" in results.warnings[0]
    assert trainer.facts["rows_per_s"] > 0
    losses = [contender.facts["held_out_loss"] for contender in results.contenders]
    assert losses[0] == pytest.approx(losses[1], abs=0.3)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["benchmark"] == "training"
    for picture in ("training_speed.png", "training_step.png"):
        assert (tmp_path / "out" / picture).is_file()
