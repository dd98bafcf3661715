"""Several labels, numbers and "I don't know": what counts as the same answer, and broken graphs that are caught."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import export_tiny_run, logits_of
from rich.console import Console
from scipy.special import logit
from scipy.stats import spearmanr
from tiny_bundles import VERIFICATION
from tiny_runs import DECISIONS, LABELS_OF, save_tiny_run, text_of

from export.agreement import agreement, rounding
from export.console import Exported, print_summary
from export.reference import Reference
from export.rows import Rows, read_rows
from export.verify import GATES, Gate, Judge, missed_bounds
from serve.contract.bundle import Bundle, NumberAgreement, Verification, read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.decision import Decision
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from serve.encoder import Encoder
from serve.session import Session

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]

SEVERAL: ProblemType = "multi_label_classification"
NUMBERS: ProblemType = "regression"


def classifier_of(problem_type: ProblemType, **changes: Any) -> Classifier:
    fields = {"labels": LABELS_OF[problem_type], "decision": DECISIONS[problem_type], "problem_type": problem_type}
    return Classifier(**{"name": "tiny", "text_column": "text", "max_length": 8} | fields | changes)  # type: ignore[arg-type]


def compared(
    classifier: Classifier,
    expected: Any,
    alone: Any,
    batched: Any = None,
    labels: Any = None,
) -> Verification:
    """Return the record of a graph with these logits [N, C]."""
    expected, alone, batched = (
        np.array(logits, np.float32) for logits in (expected, alone, alone if batched is None else batched)
    )
    rows = Rows("rows.csv", ["a text"] * len(alone), None if labels is None else np.array(labels))
    return agreement(rows, classifier, expected, alone, [alone, batched], {"right": np.zeros((1, alone.shape[1]))})


def test_several_labels_agree_by_their_thresholds_and_not_by_the_best_one() -> None:
    classifier = classifier_of(SEVERAL, temperature=2.0)  # thresholds 0.4, 0.5, 0.52
    cut = 2.0 * logit(0.4)
    expected = [[cut - 0.1, 5, -5], [cut - 3e-5, 5, -5], [9, 9, 9], [-9, -9, -9]]
    alone = [[cut + 0.1, 5, -5], [cut + 3e-5, 5, -5], [8, 7, 9], [-8, -9, -7]]
    labels = [[True, True, False], [False, True, False], [True, True, False], [False, False, False]]
    record = compared(classifier, expected, alone, labels=labels)
    assert record.label_agreement == pytest.approx(1 - 1 / 12)
    assert (record.row_agreement, record.num_ties) == (0.75, 1)
    assert (record.accuracy, record.pytorch_accuracy) == (0.5, 0.5)
    assert record.pytorch_ranking_precision == pytest.approx(
        (1 + 1 + 2 / 3 + 1) / 4
    )  # of three equal scores, two right
    assert record.ranking_precision == pytest.approx((1 + 1 + (1 / 2 + 2 / 3) / 2 + 1) / 4)
    assert (record.num_batch_flips, record.abstention_agreement, record.numbers) == (0, None, None)


def test_a_label_that_is_given_only_in_a_batch_is_a_flip() -> None:
    alone, batched = [[3, 3, 3], [3, 3, 3]], [[3, 3, 3], [3, -1, -1]]
    record = compared(classifier_of(SEVERAL), alone, alone, batched)
    assert (record.label_agreement, record.num_batch_flips) == (1.0, 1)
    assert missed_bounds(record, GATES[SEVERAL]["int8"]) == ["1 labels depend on the batch"]


def test_whether_the_model_abstains_is_part_of_the_answer() -> None:
    classifier = classifier_of("single_label_classification", decision=Decision(abstain_below=0.8))
    cut = logit(0.8)  # of two labels
    expected = [[cut + 0.1, 0], [cut - 3e-5, 0], [5, 0], [0.1, 0]]
    alone = [[cut - 0.1, 0], [cut + 3e-5, 0], [6, 0], [0.2, 0]]
    record = compared(classifier, expected, alone, [*alone[:2], [1, 0], alone[3]])
    assert (record.label_agreement, record.abstention_agreement, record.row_agreement) == (1.0, 0.75, None)
    assert (record.num_ties, record.num_batch_flips) == (1, 1)
    assert missed_bounds(record, GATES["single_label_classification"]["fp32"])[1:] == [
        "abstention agreement 75.00%, needed 100.00%",
        "1 labels depend on the batch",
    ]
    assert compared(classifier_of("single_label_classification"), expected, alone).abstention_agreement is None


def test_numbers_are_compared_in_shares_of_their_spread() -> None:
    random = np.random.default_rng(0)
    expected = random.normal(size=(200, 1))
    true = expected[:, 0] + random.normal(size=200)
    alone = expected + 0.01 * random.normal(size=(200, 1))
    batched = alone.copy()
    batched[:3] += [[2e-3], [5e-4], [-2e-3]]
    record = compared(classifier_of(NUMBERS), expected, alone, batched, true)
    numbers = record.numbers
    assert numbers is not None
    assert numbers.spread == pytest.approx(expected.std(), rel=1e-6)
    assert numbers.change == pytest.approx(np.sqrt(((alone - expected) ** 2).mean()) / expected.std(), rel=1e-4)
    assert numbers.max_batch_change == pytest.approx(2e-3 / expected.std(), rel=1e-3)
    assert numbers.spearman == pytest.approx(spearmanr(alone[:, 0], true)[0])
    assert numbers.spearman_with_pytorch == pytest.approx(spearmanr(alone[:, 0], expected[:, 0])[0], abs=1e-5)
    assert (record.num_batch_flips, record.label_agreement, record.accuracy) == (2, None, None)
    clipped = classifier_of(NUMBERS, decision=Decision(value_range=(-9.0, 0.0)))
    all_above = compared(clipped, expected + 20, alone + 20, labels=true).numbers  # every answer is 0
    assert all_above is not None
    assert (all_above.change, all_above.spearman) == (0.0, 0.0)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e5])
def test_numbers_of_any_unit_are_held_to_the_same_gate(unit: float) -> None:
    """Training writes a head that answers in the target's unit."""
    random = np.random.default_rng(0)
    classifier = classifier_of(NUMBERS, decision=Decision())
    expected = (unit * random.normal(size=(200, 1)) + 20 * unit).astype(np.float32)  # such as years
    noise = unit * random.normal(size=(200, 1)).clip(-3, 3)
    for share, gate, passes in [
        (0.0, "fp32", True),
        (2e-5, "fp32", True),
        (1e-3, "fp32", False),
        (0.004, "fp16", True),
        (0.006, "fp16", False),
        (0.015, "int8", True),
        (0.025, "int8", False),
    ]:
        record = compared(classifier, expected, expected + share * noise)
        assert (not missed_bounds(record, GATES[NUMBERS][gate], rounding(expected, classifier))) is passes, share
    for share, flips in ((1e-4, 0), (0.01, 1)):
        batched = expected.copy()
        batched[5] += share * unit
        assert compared(classifier, expected, expected, batched).num_batch_flips == flips


def test_numbers_that_are_none_fail_every_gate() -> None:
    expected = np.random.default_rng(0).normal(size=(60, 1))
    record = compared(classifier_of(NUMBERS), expected, expected * np.where(np.arange(60) == 7, np.nan, 1)[:, None])
    assert all(missed_bounds(record, gate) for gate in GATES[NUMBERS].values())


def several(agreement: float, ranking: float = 0.8, rows: int = 2_000) -> Verification:
    found = {"label_agreement": agreement, "row_agreement": 0.9, "rows": rows, "accuracy": 0.1}
    return dataclasses.replace(VERIFICATION, **found, ranking_precision=ranking, pytorch_ranking_precision=0.8)


def number(change: float, spearman: float | None = 0.85, logits: float = 9e-5) -> Verification:
    found = NumberAgreement(
        spread=1.5,
        change=change,
        max_batch_change=0.0,
        spearman_with_pytorch=0.999,
        spearman=spearman,
        pytorch_spearman=None if spearman is None else 0.85,
    )
    return dataclasses.replace(
        VERIFICATION, label_agreement=None, accuracy=None, max_abs_logit_difference=logits, numbers=found
    )


@pytest.mark.parametrize(
    ("record", "gate", "missed"),
    [
        (several(0.9901), GATES[SEVERAL]["int8"], []),
        (several(0.9899), GATES[SEVERAL]["int8"], ["label agreement 98.99%, needed 99.00%"]),
        (several(0.9951), GATES[SEVERAL]["fp16"], []),
        (several(1 - 1 / 56_000), GATES[SEVERAL]["fp32"], ["label agreement 100.00%, needed 100.00%"]),
        (several(1.0, 0.7951), GATES[SEVERAL]["int8"], []),
        (several(1.0, 0.7949), GATES[SEVERAL]["int8"], ["ranking precision 0.51% below PyTorch's, allowed 0.50%"]),
        (several(1.0, 0.9), GATES[SEVERAL]["int8"], []),
        (number(0.0199), GATES[NUMBERS]["int8"], []),
        (number(0.0201), GATES[NUMBERS]["int8"], ["numbers change by 2.01% of their spread, allowed 2.00%"]),
        (number(0.01, None), GATES[NUMBERS]["int8"], []),
        (number(0.0051), GATES[NUMBERS]["fp16"], ["numbers change by 0.51% of their spread, allowed 0.50%"]),
        (number(0.01, 0.854), GATES[NUMBERS]["int8"], ["Spearman 0.8540, PyTorch's 0.8500: they may differ by 0.003"]),
        (number(0.0), GATES[NUMBERS]["fp32"], []),
        (number(1e-3, logits=2e-4), GATES[NUMBERS]["fp32"], ["|logit difference| up to 0.0002, allowed 0.0001"]),
    ],
)
def test_the_gates_of_several_labels_and_of_numbers(record: Verification, gate: Gate, missed: list[str]) -> None:
    assert missed_bounds(record, gate) == missed


@pytest.fixture(scope="module", params=[SEVERAL, NUMBERS])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / request.param, problem_type=request.param, num_rows=200)


@pytest.fixture(scope="module")
def exported(kind: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All variants, with gates that a tiny random model meets, whose scores are all near the cuts."""
    lenient = {SEVERAL: Gate(min_label_agreement=0.95), NUMBERS: Gate(max_change=0.2)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for problem_type, gate in lenient.items():
            monkeypatch.setitem(GATES, problem_type, GATES[problem_type] | {"int8": gate, "fp16": gate})
        made = export_tiny_run(kind, tmp_path_factory.mktemp("bundles") / "b")
    assert made.left_out == {}
    return read_bundle(made.folder)


@pytest.mark.parametrize("exporter", ["optimum", "torch"])
def test_both_exporters_know_both_kinds(kind: Path, exporter: str, tmp_path: Path) -> None:
    if exporter == "optimum":
        pytest.importorskip("optimum.onnxruntime", reason="Optimum needs transformers 4", exc_type=ImportError)
    made = export_tiny_run(kind, tmp_path / "b", variants=("fp32",), exporter=exporter)
    assert "Attention" in made.variants["fp32"].fused_operators
    assert made.variants["fp32"].verification.max_abs_logit_difference <= 1e-4
    if made.variants["fp32"].verification.numbers is None:
        assert made.variants["fp32"].verification.row_agreement == 1.0


def test_a_bundle_of_each_kind_says_what_was_proved(exported: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    problem_type = exported.classifier.problem_type
    config = json.loads((exported.folder / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == problem_type  # by which transformers' pipeline chooses
    texts = [text_of(number) for number in range(30)]
    alone = logits_of(exported, "int8", texts, 1)
    assert alone.shape == (30, len(LABELS_OF[problem_type]))
    assert np.array_equal(logits_of(exported, "int8", texts, 30), alone)
    card = (exported.folder / "README.md").read_text(encoding="utf-8")
    record = exported.manifest.variants["int8"].verification
    assert record.num_batch_flips == 0
    if problem_type == SEVERAL:
        assert "gives any number of 3 labels to texts of up to 56" in card
        assert "angry 0.4, happy 0.5, sad 0.52." in card
        assert "| decisions as PyTorch | whole rows | accuracy |" in card
        assert record.label_agreement is not None
        assert record.label_agreement >= 0.95
    else:
        assert "answers texts of up to 56 tokens with a number: stars." in card
        assert record.numbers is not None
        assert 0 < record.numbers.change < 0.2
        assert f"| {record.numbers.change:.2%} |" in card
    folder, variants = exported.folder, exported.manifest.variants
    sizes = {name: (folder / each.file).stat().st_size for name, each in variants.items()}
    print_summary(Console(width=200), Exported(folder, variants, {}, {}, sizes), None)
    assert ("PyTorch's Spearman" if problem_type == NUMBERS else "macro F1") in capsys.readouterr().out


class Changed:
    """A session whose logits are changed."""

    def __init__(self, graph: Path, change: Callable[[np.ndarray, int], np.ndarray]) -> None:
        self._session, self._change = Session(graph), change

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._change(self._session.run(inputs), len(inputs["input_ids"])).astype(np.float32)


@pytest.mark.parametrize("gate", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("change", "of_labels", "of_numbers"),
    [
        (lambda logits, rows: logits, None, None),
        (lambda logits, rows: logits + 3 * np.eye(1, logits.shape[1]), "label agreement", "numbers change by|logit"),
        (lambda logits, rows: logits * (1.0 + 0.5 * (rows > 1)) - (rows > 1), "labels depend on", "numbers depend on"),
        (lambda logits, rows: -logits, "label agreement", "numbers change by|logit"),
    ],
)
def test_a_broken_graph_is_caught(
    exported: Bundle, kind: Path, gate: str, change: Any, of_labels: str | None, of_numbers: str | None
) -> None:
    classifier = read_classifier(kind / "model")
    rows = read_rows(kind / "samples" / "validation.parquet", "validation", classifier)
    reference = Reference(kind / "model", classifier)
    judge = Judge(Encoder.from_bundle(exported), reference, rows, reference.logits(rows), ("a film",))
    bounds = GATES[classifier.problem_type][gate]
    shortfalls = judge.verify(Changed(exported.graph("fp32"), change), bounds).shortfalls  # type: ignore[arg-type]
    message = of_numbers if classifier.problem_type == NUMBERS else of_labels
    if message is None:
        assert shortfalls == []
    else:
        assert any(part in "; ".join(shortfalls) for part in message.split("|"))


def test_a_config_that_names_another_kind_is_caught(kind: Path, tmp_path: Path) -> None:
    """transformers' pipeline would put a softmax over several labels."""
    copy = shutil.copytree(kind, tmp_path / "run")
    file = copy / "model" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"problem_type": None}), encoding="utf-8")
    with pytest.raises(InputError, match=r"problem type: classifier\.json has \w+, the model single_label"):
        export_tiny_run(copy, tmp_path / "b", variants=("fp32",))


def test_a_share_of_labels_is_not_asked_of_numbers(kind: Path, tmp_path: Path) -> None:
    if read_classifier(kind / "model").problem_type == NUMBERS:
        with pytest.raises(InputError, match="--min_label_agreement is for labels, and the model answers with numbers"):
            export_tiny_run(kind, tmp_path / "b", min_label_agreement=0.9)
