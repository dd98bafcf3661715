import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundles import save_tiny_bundle
from tiny_runs import LABELS, save_tiny_run, text_of

from bench.__main__ import main as bench
from bench.harness.arena import Entrant
from bench.harness.results import Measurement, read_results
from bench.harness.workload import Workload, rows_of_run
from bench.inference.contenders import REFERENCE, THROUGHPUT, Graphs, ours, peers
from bench.inference.run import InferenceOptions, answers_of, judge, measure, read_own_bundle, read_student, run
from bench.inference.workers import ClassifierWorker
from export.__main__ import main as export
from serve.contract.bundle import read_bundle
from serve.contract.classifier import read_classifier
from serve.contract.errors import InputError, first_line

ROWS = Workload(origin="here", inputs=tuple(f"text {n}" for n in range(6)), labels=(0, 1, 0, 1, 0, 1))


class CountingWorker(ClassifierWorker):
    """Answers with the number in the text, and remembers its batches."""

    def load(self) -> None:
        self.batches: list[int] = []
        self.seen: list[int] = []

    def classify(self, rows: Any) -> list[int]:
        self.batches.append(len(rows))
        found = [int(row.split()[1]) for row in rows]
        self.seen += found
        return found


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingWorker:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS.inputs), encoding="utf-8")
    made = CountingWorker(rows_file=str(path), max_length=8)
    made.start()
    made.batches.clear()
    made.seen.clear()
    return made


def test_a_repeat_takes_the_next_rows_in_whole_batches(worker: CountingWorker) -> None:
    answer = worker.repeat(batch_size=2, first=3, num_rows=4, min_seconds=0.0, model_only=False)
    assert worker.batches == [2, 2]
    assert worker.seen == [3, 4, 5, 0]
    assert answer["amount"] == 4
    assert len(answer["latencies_ms"]) == 2
    assert sum(answer["latencies_ms"]) == pytest.approx(1e3 * answer["seconds"])


def test_a_fast_contender_goes_over_its_rows_until_the_time_is_up(worker: CountingWorker) -> None:
    answer = worker.repeat(batch_size=3, first=0, num_rows=3, min_seconds=0.02, model_only=False)
    assert answer["seconds"] >= 0.02
    assert answer["amount"] == 3 * len(worker.batches) > 3


def test_every_row_is_classified_for_its_label(worker: CountingWorker) -> None:
    assert worker.labels(batch_size=4) == {"labels": [0, 1, 2, 3, 4, 5]}
    assert worker.batches == [4, 2]


class Record:
    """Takes an arena's place: keeps facts, and answers with what it was given; None where a contender failed."""

    def __init__(self, **answers: list[dict[str, Any] | None]) -> None:
        self.answers = answers
        self.alive = list(answers)
        self.facts: dict[str, dict[str, float]] = {}

    def call(self, name: str, verb: str, *, batch_size: int) -> dict[str, Any] | None:
        return self.answers[name][batch_size == 32]

    def add_facts(self, name: str, facts: dict[str, float]) -> None:
        self.facts[name] = facts


def test_labels_are_judged_by_accuracy_agreement_and_flips() -> None:
    right = {"labels": [0, 1, 0, 1, 0, 0]}
    arena: Any = Record(
        **{
            REFERENCE: [right, right],
            "ours": [{"labels": [0, 1, 1, 1, 0, 0]}, {"labels": [0, 1, 0, 1, 1, 0]}],
            "broken": [right, None],
        }
    )
    judge(arena, answers_of(arena, "labels"), ROWS)
    assert arena.facts == {
        REFERENCE: {"accuracy": 5 / 6, "agreement": 1.0, "flips": 0},
        "ours": {"accuracy": 4 / 6, "agreement": 5 / 6, "flips": 2},
    }


def test_the_bundle_of_another_run_is_refused(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "bundle")
    own = read_classifier(bundle)
    assert read_own_bundle(bundle, own).folder == bundle
    other = save_tiny_bundle(tmp_path / "other", labels=("no", "yes"))
    with pytest.raises(InputError, match="the bundle of another run; name"):
        read_own_bundle(other, own)


def test_the_bundle_of_a_student_needs_the_same_labels(tmp_path: Path) -> None:
    own = read_classifier(save_tiny_bundle(tmp_path / "bundle"))
    assert read_student(tmp_path / "bundle", own).classifier == own
    with pytest.raises(InputError, match=r"--students .*: labels \('no', 'yes'\), and the model's is .*; name"):
        read_student(save_tiny_bundle(tmp_path / "other", labels=("no", "yes")), own)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "--rows must be at least 1"),
        ({"batch_sizes": [0]}, "must be 1 or more"),
        ({"hourly_price": 0.0}, "--hourly_price must be positive"),
        ({"contenders": []}, "--contenders is empty"),
        ({"run": None}, "name either a --run, or a --model with --rows_file"),
        ({"model": "m", "rows_file": Path("r.csv")}, "name either a --run, or a --model with --rows_file"),
        ({"run": None, "model": "m"}, "--rows_file: labelled rows that it was not trained on"),
        ({"rows_file": Path("r.csv")}, "--rows_file: labelled rows that it was not trained on"),
        ({"text_column": "body"}, "columns of rows .* for --model; leave it out"),
        ({"run": None, "model": "m", "rows_file": Path("r.csv"), "bundle": Path("b")}, "--bundle is for --run"),
    ],
)
def test_bad_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        InferenceOptions(**{"run": Path("run")} | fields)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with its bundle."""
    folder = save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    assert export(["--run", str(folder), "--variants", "fp32"]) == 0
    return folder


def test_rows_come_from_the_sample_that_training_left(tiny_run: Path) -> None:
    rows = rows_of_run(tiny_run, "validation")
    assert len(rows) == 60
    assert all(isinstance(row, str) for row in rows.inputs)
    assert rows.labels == tuple(number % len(LABELS) for number in range(60))


def test_too_few_rows_are_reported_before_anything_is_measured(tiny_run: Path) -> None:
    with pytest.raises(InputError, match="60 rows, and the largest batch needs 128"):
        run(InferenceOptions(run=tiny_run), "")


def test_contenders_for_a_gpu_appear_where_cuda_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(num_gpus: int, device: str) -> dict[str, Entrant]:
        monkeypatch.setattr("bench.inference.contenders.num_gpus", lambda: num_gpus)
        monkeypatch.setattr("bench.inference.contenders.resolve_device", lambda _: device)
        return {entrant.name: entrant for entrant in [*peers(graphs, {}), *ours(bundle, {})]}

    bundle = read_bundle(save_tiny_bundle(tmp_path / "bundle"))
    fp16 = dataclasses.replace(bundle.manifest.variants["fp32"], method="converted")
    manifest = dataclasses.replace(bundle.manifest, variants=bundle.manifest.variants | {"fp16": fp16})
    bundle = dataclasses.replace(bundle, manifest=manifest)
    graphs = Graphs(tmp_path, bundle, ROWS, tmp_path, None)
    on_cpu, on_gpu = offered(0, "cpu"), offered(1, "cuda")
    assert on_cpu.keys() - on_gpu.keys() == {"torch.compile fp32"}
    assert on_gpu.keys() - on_cpu.keys() == {
        "PyTorch fp16", "torch.compile fp16", "torch.compile bf16", "rawloop fp16", "rawloop fp16, CUDA graphs",
    }  # fmt: skip
    assert on_gpu["rawloop fp16, CUDA graphs"].spec.settings["cuda_graphs"]
    assert "cuda_graphs" not in on_gpu["rawloop fp16"].spec.settings


def test_a_pipeline_its_twin_and_a_queue_have_no_model_alone() -> None:
    class Asked:
        alive = ("pipeline", "pipeline (again)", THROUGHPUT, "rawloop fp32")

        def measure(self, case: str, *_: object, only: list[str] | None = None, **__: object) -> list[Measurement]:
            assert case.startswith("batch") or only == ["rawloop fp32"]
            return []

    measure(Asked(), InferenceOptions(run=Path("run"), quick=True), [16])  # type: ignore[arg-type]


def test_an_error_without_a_message_is_reported_by_its_class() -> None:
    assert first_line(ValueError("")) == "ValueError"
    assert first_line(RuntimeError("  one\ntwo")) == "one"


def test_ours_and_pytorch_are_measured_on_the_same_rows_and_agree(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_student = f"rawloop fp32 of {read_classifier(tiny_run / 'model').name}"
    options = InferenceOptions(
        run=tiny_run, quick=True, contenders=["PyTorch fp32", "rawloop fp32", of_student], self_check=True, threads=1,
        hourly_price=1.0, output=tmp_path, students=[tiny_run / "onnx"],
    )  # fmt: skip
    run(options, "python -m bench inference")
    results = read_results(tmp_path)
    facts = {contender.name: contender.facts for contender in results.contenders}
    assert [c.status for c in results.contenders] == ["measured"] * 4, [c.reason for c in results.contenders]
    for name in ("PyTorch fp32", "rawloop fp32", "rawloop fp32 (again)", of_student):
        assert facts[name]["agreement"] == 1.0
        assert facts[name]["flips"] == 0
        assert facts[name]["cost_of_a_million"] > 0
        assert facts[name]["cold_start_s"] > 0
    assert facts["PyTorch fp32"]["accuracy"] == facts["rawloop fp32"]["accuracy"]
    assert results.cases == ["batch 1", "batch 32", "model alone, batch 32"]
    assert results.headline == "rawloop fp32"
    for picture in ("latency_batch.png", "throughput_latency.png", "trade_off.png", "frontier.png"):
        assert (tmp_path / picture).is_file()
    assert "cost of a million" in (tmp_path / "results.md").read_text(encoding="utf-8")
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["cases"]["batch 32"]["rawloop fp32 (again)"]["verdict"] == "too few rounds to tell"


@pytest.fixture
def rows(write_rows: Callable[..., Path]) -> Path:
    texts = [(text_of(number), LABELS[number % 2]) for number in range(80)]
    return write_rows(texts, "labelled.csv", ("body", "team"))


@pytest.fixture
def existing(tiny_run: Path, tmp_path: Path) -> Path:
    """Return the run's model as others save theirs."""
    shutil.copytree(tiny_run / "model", tmp_path / "theirs", ignore=shutil.ignore_patterns("classifier.json"))
    return tmp_path / "theirs"


@pytest.mark.filterwarnings("ignore")  # of the tracer, about its own code
def test_a_model_that_was_trained_elsewhere_is_exported_and_measured_by_one_command(
    existing: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.speed.NUM_ROUNDS", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(path.name for path in tmp_path.iterdir())
    words = ["--rows_file", str(rows), "--text_column", "body", "--label_column", "team", "--label_names", *LABELS]
    words += ["--output", str(tmp_path / "out"), "--contenders+=rawloop fp32", "--threads", "1"]
    assert bench(["inference", "--model", str(existing), *words, "--quick"]) == 0
    results = read_results(tmp_path / "out")
    assert (results.work["model"], results.work["split"], results.work["rows"]) == ("theirs", "labelled.csv", 40)
    assert results.contenders[0].facts["accuracy"] > 0
    assert results.cases == ["batch 1", "batch 32", "model alone, batch 32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no/such-model", "--rows_file", "ROWS"], "--model no/such-model: could not be loaded"),
        (["--model", "RUN", "--rows_file", "ROWS"], "a run of training; pass --run"),
        (["--model", "BUNDLE", "--rows_file", "ROWS"], "a bundle, which is exported already"),
        (["--model", "MODEL", "--rows_file", "absent.csv"], "absent.csv: no such file"),
        (["--model", "MODEL", "--rows_file", "ROWS", "--text_column", "text"], "no column 'text'"),
        (["--model", "MODEL", "--rows_file", "ROWS"], "40 rows, and the largest batch needs 128"),
        (["--model", "MODEL"], "name either a --run, or a --model with --rows_file"),
    ],
)
def test_a_model_that_cannot_be_measured_is_reported_in_one_message(
    tiny_run: Path,
    existing: Path,
    rows: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    places = {"RUN": tmp_path / "run", "BUNDLE": tiny_run / "onnx", "MODEL": existing, "ROWS": rows}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    words = [str(places.get(word, word)) for word in words]
    columns = [] if "--text_column" in words else ["--text_column", "body"]
    assert bench(["inference", *words, *columns, "--label_column", "team", "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
