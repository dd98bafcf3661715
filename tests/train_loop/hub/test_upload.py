"""Uploads of runs to the stand-in of the Hub, and what is then loaded from it."""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from exports import export_tiny_run
from hub_server import TOKEN, Hub, connected_hub
from labelled_rows import labelled_rows
from tiny_bundles import save_tiny_bundle
from tiny_runs import LABELS, save_tiny_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from train_loop.hub.__main__ import main
from train_loop.main import main as train

# huggingface_hub 1 passes bytes to httpx in a way that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
    (run / "model" / "README.md").write_text('---\nlicense: mit\n---\npipeline("text-classification", "tiny")\n')
    (run / "results").mkdir()
    for name in ("report.html", "roc.png", "predictions.csv"):
        (run / "results" / name).write_text(name)
    return run


@pytest.fixture
def hub() -> Iterator[Hub]:
    with connected_hub() as server:
        yield server


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "tiny")


def upload(run: Path, *flags: str) -> int:
    return main(["--run", str(run), "--repository", "router", *flags])


def test_a_new_repository_is_private_and_gets_everything_in_one_commit(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upload(run, "--tag", "v1") == 0
    repository = hub.repositories["me/router"]
    assert repository.private
    assert len(repository.commits) == 2
    model = {path.name for path in (run / "model").iterdir()}
    assert {*repository.files} == {*model, "results/report.html", "results/roc.png", ".gitattributes"}
    assert b'pipeline("text-classification", "me/router")' in repository.files["README.md"]
    assert repository.tags == {"v1": repository.commits[-1].oid}
    assert f"{hub.address}/me/router/commit/{repository.commits[-1].oid}, tagged v1" in capsys.readouterr().out


def test_an_existing_repository_keeps_its_visibility_and_loses_what_is_of_an_earlier_model(hub: Hub, run: Path) -> None:
    assert upload(run, "--public") == 0
    repository = hub.repositories["me/router"]
    repository.files.update({"onnx/model.onnx": b"", "vocab.txt": b"", "LICENSE": b"mine"})
    (run / "results" / "report.html").write_text("new")
    assert upload(run) == 0
    assert not repository.private
    assert len(repository.commits) == 3
    assert repository.files["results/report.html"] == b"new"
    assert repository.files["LICENSE"] == b"mine"
    assert not {"onnx/model.onnx", "vocab.txt"} & {*repository.files}


def test_a_bundle_of_another_model_stays_where_it_is(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_bundle(run / "onnx")
    assert upload(run) == 0
    assert "is of an earlier model and stays here" in capsys.readouterr().out
    assert not any(name.startswith("onnx/") for name in hub.repositories["me/router"].files)


def test_a_tag_that_exists_is_an_error_before_anything_moves(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert upload(run, "--tag", "v1") == 0
    (run / "results" / "report.html").write_text("new")
    assert upload(run, "--tag", "v1") == 2
    assert "--tag v1: me/router has that tag already" in capsys.readouterr().err
    repository = hub.repositories["me/router"]
    assert (len(repository.commits), repository.tags["v1"]) == (2, repository.commits[1].oid)


def test_a_connection_that_breaks_in_a_large_file_is_taken_up_again(hub: Hub, run: Path) -> None:
    hub.breaks = 2
    assert upload(run) == 0
    assert hub.repositories["me/router"].files["model.safetensors"] == (run / "model/model.safetensors").read_bytes()


def test_a_connection_that_stays_broken_ends_with_an_error_and_repeating_sends_only_the_rest(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.breaks = 6  # as often as huggingface_hub tries
    (run / "results" / "roc.png").unlink()
    assert upload(run) == 1
    repository = hub.repositories["me/router"]
    assert len(repository.commits) == 1
    said, shown = capsys.readouterr()
    assert said.startswith("Uploading ")
    assert "not uploaded" in shown
    assert "Repeat the upload" in shown
    shutil.copyfile(run / "model" / "config.json", run / "results" / "roc.png")  # the other large file
    hub.lost_answers = 1  # the commit is made all the same
    assert upload(run) == 0
    assert upload(run) == 0
    assert len(hub.received) == len({*hub.received}) == 2
    assert len(repository.commits) == 2


def test_a_hub_that_is_out_of_reach_is_said_in_few_words(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train_loop.hub.upload.WAITS_S", ())
    retried = Exception("Max retries exceeded")
    retried.reason = OSError("no such name")  # type: ignore[attr-defined]  # as urllib3 does
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", Mock(side_effect=ConnectionError(retried, "(Request 1)")))
    assert upload(run) == 1
    assert "router: not uploaded (no such name). Repeat the upload" in capsys.readouterr().err


def test_a_token_without_rights_is_named_and_never_printed(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.may_write = False
    assert upload(run) == 2
    shown = "".join(capsys.readouterr())
    assert "router: the Hub does not let your token write there (Token [token] is read-only)" in shown
    assert "hf auth login" in shown
    assert TOKEN not in shown


@pytest.mark.parametrize(
    ("flags", "token", "message"),
    [
        (["--repository=a b"], TOKEN, "not a repository's name"),
        (["--tag=v 1"], TOKEN, "--tag 'v 1': expected letters"),
        (["--run=absent"], None, "absent: no finished run"),
        ([], None, "no token for the Hub"),
    ],
)
def test_what_is_wrong_before_any_connection(
    run: Path,
    flags: list[str],
    token: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    assert upload(run, *flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("pictureless")
def test_a_run_that_cannot_be_pushed_is_finished_and_the_printed_command_uploads_it(
    hub: Hub, tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(labelled_rows(60))
    argv = [f"--model_name={tiny_model}", f"--train_file={rows}", f"--output_dir={tmp_path}", "--run_name=my run"]
    hub.may_write = False
    assert train([*argv, "--epochs=1", "--push_to_hub=router"]) == 1
    captured = capsys.readouterr()
    shown = " ".join(captured.err.split())
    assert "The run is finished, nothing of it is lost" in shown
    assert "/my run'" in captured.out.partition("Export it: python -m export --run '")[2]
    assert "so few may learn too little: try --epochs 10" in captured.out
    hub.may_write = True
    command = shlex.split(shown.partition("upload it later: python -m train_loop.hub ")[2])[:4]
    assert main(command) == 0
    assert b'"text-classification", "me/router"' in hub.repositories["me/router"].files["README.md"]


def test_a_push_without_a_token_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert train(["--train_file=a.csv", "--push_to_hub=router", f"--output_dir={tmp_path}"]) == 2
    assert "error: --push_to_hub: no token for the Hub" in capsys.readouterr().err


LOAD = """
import json, sys
import torch
from huggingface_hub import snapshot_download
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from serve import Predictor

repository = "me/router"
inputs = AutoTokenizer.from_pretrained(repository, revision="v1")(["good film w3"], return_tensors="pt")
torch_model = AutoModelForSequenceClassification.from_pretrained(repository, revision="v1")
onnx_model = ORTModelForSequenceClassification.from_pretrained(repository, subfolder="onnx", file_name=sys.argv[1])
with torch.no_grad():
    logits = [model(**inputs).logits[0].tolist() for model in (torch_model, onnx_model)]
with Predictor(snapshot_download(repository, allow_patterns="onnx/*") + "/onnx", variant="fp32") as predictor:
    print(json.dumps([*logits, predictor("good film w3").label]))
"""


@pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="Optimum needs transformers 4")
def test_what_was_uploaded_loads_in_transformers_optimum_and_rawloop(hub: Hub, run: Path, tmp_path: Path) -> None:
    export_tiny_run(run, run / "onnx", variants=["fp32"])
    assert upload(run, "--tag", "v1") == 0
    own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", LOAD, "model.onnx"]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    transformers_logits, optimum_logits, label = json.loads(done.stdout.splitlines()[-1])
    local = AutoModelForSequenceClassification.from_pretrained(run / "model")
    inputs = AutoTokenizer.from_pretrained(run / "model")(["good film w3"], return_tensors="pt")
    with torch.no_grad():
        logits = local(**inputs).logits[0].tolist()
    assert transformers_logits == pytest.approx(logits, abs=1e-5)  # two processes: memory is aligned otherwise
    assert optimum_logits == pytest.approx(logits, abs=1e-4)
    assert label == LABELS[logits.index(max(logits))]
