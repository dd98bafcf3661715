import dataclasses
import io
import json
from pathlib import Path

import pytest
from bench_fakes import MACHINE, results_of
from rich.console import Console

from bench.harness.compare import CompareOptions, compare, doubts, run
from bench.harness.report import Rows, publish, summary, tables
from bench.harness.results import RESULTS_FILE, Contender, Results, read_results, write_results
from serve.contract.errors import InputError


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    results = results_of({"ours": 300.0, "theirs": 100.0})
    write_results(tmp_path / "new", results)
    assert read_results(tmp_path / "new") == results
    assert read_results(tmp_path / "new" / RESULTS_FILE) == results


def test_a_damaged_file_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    path = write_results(tmp_path, results_of({"ours": 300.0}))
    content = json.loads(path.read_text(encoding="utf-8"))
    content["measurements"][0]["samples"][3]["seconds"] = -1
    content["benchmark"] = "racing"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_results(tmp_path)
    assert "measurements[0].samples[3].seconds must be positive, and finite, found -1" in str(caught.value)
    assert "benchmark must be one of training, inference, load, quantization, found 'racing'" in str(caught.value)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = write_results(tmp_path, results_of({"ours": 300.0}))
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"schema_version": 9}), encoding="utf-8")
    with pytest.raises(InputError, match="schema version 9, and this rawloop reads 1 to 1"):
        read_results(tmp_path)


def test_compare_finds_what_changed_and_what_did_not() -> None:
    before = results_of({"ours": 300.0, "theirs": 100.0}, seed=1)
    after = results_of({"ours": 450.0, "theirs": 101.0}, seed=11)
    assert verdicts(compare(before, after)) == {"ours, batch 32": "faster", "theirs, batch 32": "alike"}
    assert verdicts(compare(after, before))["ours, batch 32"] == "slower"


def verdicts(found: dict[str, Rows]) -> dict[str, str]:
    return {row["contender, case"]: row["verdict"] for row in found["Speeds"]}


def test_compare_shows_changed_facts() -> None:
    before, after = (with_accuracy(results_of({"ours": 300.0}), accuracy) for accuracy in (0.73, 0.71))
    assert compare(before, after)["Other figures that changed"] == [
        {"contender, figure": "ours, accuracy", "before": "0.73", "after": "0.71"}
    ]


def with_accuracy(results: Results, accuracy: float) -> Results:
    found = [dataclasses.replace(each, facts={"accuracy": accuracy}) for each in results.contenders]
    return dataclasses.replace(results, contenders=tuple(found))


def test_compare_refuses_results_of_different_work() -> None:
    before = results_of({"ours": 300.0})
    with pytest.raises(InputError, match=r"different work: rows \(100 and 200\), lengths \(absent and 64\)"):
        compare(before, results_of({"ours": 300.0}, work={"rows": 200, "rows_digest": "abc", "lengths": "64"}))
    with pytest.raises(InputError, match=r"benchmark \(inference and load\)"):
        compare(before, results_of({"ours": 300.0}, benchmark="load"))
    with pytest.raises(InputError, match="no contender was measured in both"):
        compare(before, results_of({"theirs": 300.0}))


def test_compare_says_where_the_machine_or_the_versions_differ() -> None:
    before = results_of({"ours": 300.0})
    machine = dataclasses.replace(MACHINE, num_threads=1, versions={"torch": "2.14.0"})
    found = doubts(before, results_of({"ours": 300.0}, machine=machine, warnings=("it was noisy",)))
    assert found == [
        "not the same machine: num_threads was 2, and is 1",
        "not the same version: torch 2.13.0 -> 2.14.0",
        "after: it was noisy",
    ]


def test_the_compare_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "a", results_of({"ours": 300.0}))
    write_results(tmp_path / "b", results_of({"ours": 900.0}, seed=5))
    run(CompareOptions(before=tmp_path / "a", after=tmp_path / "b"), "")
    out = capsys.readouterr().out
    assert "ours, batch 32" in out
    assert "faster" in out


def test_the_json_line_holds_medians_intervals_and_what_is_missing() -> None:
    results = results_of({"ours": 300.0, "theirs": 100.0}, noise=0.0)
    absent = Contender(name="peer", status="not installed", reason="needs peer")
    found = summary(dataclasses.replace(results, contenders=(*results.contenders, absent)))
    assert found["cases"] == {
        "batch 32": {
            "ours": {"rows_per_s": 300.0},
            "theirs": {"rows_per_s": 100.0, "baseline_is_times": 3.0, "interval": [3.0, 3.0], "verdict": "faster"},
        }
    }
    assert found["not_measured"] == {"peer": "needs peer"}


def test_what_was_offered_different_rates_has_no_ratio() -> None:
    results = results_of({"ours": 300.0, "theirs": 100.0}, noise=0.0)
    offered = tuple(dataclasses.replace(m, facts={"offered_per_s": 50.0}) for m in results.measurements)
    results = dataclasses.replace(results, measurements=offered)
    assert summary(results)["cases"] == {"batch 32": {"ours": {"rows_per_s": 300.0}, "theirs": {"rows_per_s": 100.0}}}
    with pytest.raises(InputError, match="no contender was measured in both"):
        compare(results, results)


def test_the_tables_hold_facts_rates_percentiles_and_ratios() -> None:
    results = with_accuracy(results_of({"ours": 300.0, "theirs": 100.0}, noise=0.0), 0.73)
    absent = Contender(name="peer", status="not installed", reason="needs litserve")
    found = tables(dataclasses.replace(results, contenders=(*results.contenders, absent)))
    assert found["Contenders"][0] == {"contender": "ours", "accuracy": "0.7300"}
    assert found["Speeds"][1] == {"contender": "theirs", "rows/s, batch 32": "100.0"}
    speeds = {"rows/s": "300.0", "p50 ms": "2.00", "p99 ms": "4.00"}
    assert found["Batch 32"] == [
        {"contender": "ours"} | speeds,
        {"contender": "theirs"} | speeds
        | {"rows/s": "100.0", "ours is ... times": "3.00 (3.00 to 3.00)", "verdict": "faster"},
    ]  # fmt: skip
    assert found["Not measured, or not to the end"] == [{"contender": "peer", "why": "not installed: needs litserve"}]


def test_a_case_without_the_headline_is_compared_with_its_first() -> None:
    results = results_of({"ours": 300.0, "theirs": 100.0}, noise=0.0, headline="elsewhere")
    assert tables(results)["Batch 32"][1]["ours is ... times"] == "3.00 (3.00 to 3.00)"


def test_publishing_ends_with_one_json_line_and_writes_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = results_of({"ours": 300.0, "theirs": 100.0}, warnings=("other processes kept 2.0 cores busy",))
    out = io.StringIO()
    publish(results, lambda *_: [tmp_path / "good_one.png"], tmp_path, Console(file=out, width=200))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["headline"] == "ours"
    assert read_results(tmp_path) == results
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    for expected in ("a processor", "torch 2.13.0", "rows 100", "**Warning:** other processes", "| ours ", "### Batch"):
        assert expected in page
        assert expected in out.getvalue()
    assert "![good one](good_one.png)" in page


def test_results_are_safe_before_a_picture_is_drawn(tmp_path: Path) -> None:
    results = results_of({"ours": 300.0})
    with pytest.raises(ZeroDivisionError):
        publish(results, lambda *_: [1 / 0], tmp_path, Console(file=io.StringIO()))  # type: ignore[list-item]
    assert read_results(tmp_path) == results
