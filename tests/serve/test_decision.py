"""One rule for "I don't know" and one set of labels, wherever an answer is given."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from live_server import live_server, save_served_bundle
from tiny_bundles import save_tiny_bundle

from serve import InputError, Predictor
from serve.contract.decision import Decision
from serve.predict import main

DECISION = Decision(abstain="score<0.6", abstain_below=0.6, set_cuts={"0.9": 0.2})
TEXTS = ["w1 good", "w1 w2", "bad w3"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundle"), decision=DECISION)


def test_predictions_abstain_and_name_sets(bundle: Path) -> None:
    with Predictor(bundle) as predictor:
        sure, unsure, other = predictor(TEXTS)
        assert [each.abstained for each in (sure, unsure, other)] == [False, True, False]
        assert sure.label_set() == ("positive",)
        assert unsure.label_set() == tuple(label for label, score in unsure.top_k(3) if score >= 0.2)
        assert len(unsure.label_set()) > 1
        with pytest.raises(InputError, match=r"no coverage 0.5 in classifier.json; it has 0.9"):
            sure.label_set(0.5)
        assert [each.abstained for each in predictor.stream(TEXTS)] == [False, True, False]


def test_without_a_rule_nothing_is_withheld_or_written(tmp_path: Path) -> None:
    plain = save_tiny_bundle(tmp_path / "b")
    with Predictor(plain) as predictor:
        assert not predictor("w1 w2").abstained
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "w1 w2"}\n')
    assert main(["--bundle", str(plain), "--file", str(rows), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert "abstained" not in json.loads((tmp_path / "out.jsonl").read_text())


def test_the_command_says_that_a_label_is_a_guess(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--bundle", str(bundle), *(each for text in TEXTS for each in ("--text", text))]
    assert main(arguments) == 0
    assert ["abstained: the label is a guess" in line for line in capsys.readouterr().out.splitlines()[1:]] == [
        False,
        True,
        False,
    ]
    assert main([*arguments, "--json"]) == 0
    assert [json.loads(line)["abstained"] for line in capsys.readouterr().out.splitlines()] == [False, True, False]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_files_say_which_rows_have_no_answer(bundle: Path, tmp_path: Path, suffix: str) -> None:
    rows, output = tmp_path / "rows.jsonl", tmp_path / f"out{suffix}"
    rows.write_text("".join(json.dumps({"text": text, "abstained": "x"}) + "\n" for text in TEXTS))
    assert (
        main(
            [
                "--bundle",
                str(bundle),
                "--file",
                str(rows),
                "--output",
                str(output),
                "--all_scores",
                "--keep_columns",
                "abstained",
            ]
        )
        == 0
    )
    if suffix == ".csv":
        with output.open(newline="") as file:
            found = [{**row, "abstained": row["abstained"].lower() == "true"} for row in csv.DictReader(file)]
    elif suffix == ".jsonl":
        found = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        found = pq.read_table(output).to_pylist()
    assert [row["abstained"] for row in found] == [False, True, False]
    assert [row["input_abstained"] for row in found] == ["x"] * 3
    assert list(found[0])[-2:] == ["abstained", "truncated"]


def test_the_server_says_so_and_refuses_an_unknown_coverage(bundle: Path) -> None:
    with live_server(bundle) as server, Predictor(bundle) as predictor:
        results = server.post("/v1/classify", {"inputs": TEXTS, "coverage": 0.9, "top_k": 1}).json()["results"]
        for result, prediction in zip(results, predictor(TEXTS), strict=True):
            assert result["abstained"] == prediction.abstained
            assert result["label_set"] == list(prediction.label_set())
            np.testing.assert_allclose(result["score"], prediction.score, rtol=1e-6)
        refused = server.post("/v1/classify", {"inputs": TEXTS, "coverage": 0.5})
        assert refused.status_code == 422
        assert "no coverage 0.5 in classifier.json; it has 0.9" in refused.json()["error"]["message"]
        model = server.get("/v1/model").json()
        assert model["decision"] == {"abstain": "score<0.6", "abstain_below": 0.6, "set_cuts": {"0.9": 0.2}}
        assert "label_set" not in server.post("/v1/classify", {"inputs": ["w1"]}).json()["results"][0]
