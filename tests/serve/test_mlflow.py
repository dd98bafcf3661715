"""A bundle as a pyfunc model of MLflow. `test` leaves MLflow out: pip install mlflow, and all of this runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kind_bundles
import pandas as pd
import pytest
from places import ROOT
from tiny_bundles import save_tiny_bundle

from serve.mlflow import _load_pyfunc, main
from serve.predictor import Predictor

TEXTS = ["w1 good", None, "bad w3", ""]
GIVEN = [text for text in TEXTS if text is not None]
SAVES: dict[str, Any] = {
    "one label": save_tiny_bundle,
    "several labels": kind_bundles.save_several_labels,
    "number": kind_bundles.save_numbers,
}


@pytest.mark.parametrize("kind", SAVES)
def test_answers_are_those_of_the_predictor(kind: str, tmp_path: Path) -> None:
    bundle = SAVES[kind](tmp_path)
    rows = pd.DataFrame({"other": range(4), "text": TEXTS}, index=[7, 8, 9, 10])
    found = _load_pyfunc(str(bundle)).predict(rows)
    assert found.index.tolist() == [7, 8, 9, 10]
    assert found["reason"].tolist() == ["", "expected text, found null", "", ""]
    answered = found[found["reason"] == ""]
    with Predictor(bundle) as predictor:
        predictions = predictor(GIVEN)
    if kind == "number":
        assert answered["value"].tolist() == pytest.approx([prediction.value for prediction in predictions])
    elif kind == "several labels":
        assert answered["labels"].tolist() == [list(prediction.labels) for prediction in predictions]
        assert found["labels"][8] == []
    else:
        assert answered["label"].tolist() == [prediction.label for prediction in predictions]
        assert found["label"][8] == ""
    # What MLflow's server does with it: there is no NaN in JSON.
    json.dumps(found.to_dict(orient="records"), allow_nan=False)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is not None, reason="MLflow is installed")
def test_without_mlflow_the_message_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(tmp_path)]) == 2
    assert "mlflow not installed; pip install 'rawloop[cpu,mlflow]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs MLflow")
@pytest.mark.parametrize("kind", SAVES)
def test_a_logged_model_brings_its_own_code(kind: str, tmp_path: Path) -> None:
    bundle = SAVES[kind](tmp_path / "bundle")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    words = ["-m", "serve.mlflow", "--bundle", str(bundle), "--register", "tiny"]
    logged = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,  # where its files go
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert logged.returncode == 0, logged.stderr
    script = """
import mlflow, pandas, sys
model = mlflow.pyfunc.load_model("models:/tiny/1")
print(model.predict(pandas.DataFrame({"text": ["w1 good", None, "bad w3", ""]})).to_json(orient="records"))
import serve
assert serve.__file__ != sys.argv[1]
requirements = open(mlflow.artifacts.download_artifacts("models:/tiny/1/requirements.txt")).read()
assert "tokenizers==" in requirements and "onnxruntime==" in requirements and "torch" not in requirements
"""
    loaded = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "serve" / "__init__.py")],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    expected = _load_pyfunc(str(bundle)).predict(pd.DataFrame({"text": TEXTS}))
    assert json.loads(loaded.stdout.splitlines()[-1]) == json.loads(expected.to_json(orient="records"))
