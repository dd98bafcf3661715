"""The files of examples/serving run unchanged."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_server import TIMEOUT_S, LiveServer, live_server, save_served_bundle
from places import ROOT

from serve.http.observability.metrics import Metrics
from serve.http.settings import PREFIX, ServeSettings, parse_settings

FOLDER = ROOT / "examples" / "serving"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")) as live:
        yield live


def run(*command: str) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}  # offline, Hugging Face's client refuses this machine, too
    ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: LiveServer) -> None:
    answers = run("bash", str(FOLDER / "curl.sh"), server.url).splitlines()
    assert len(answers) == 7
    assert '"model_name":"tiny"' in answers[5]


def test_inference_client(server: LiveServer) -> None:
    lines = run(sys.executable, str(FOLDER / "inference_client.py"), server.url).splitlines()
    assert sorted(line.split()[1] for line in lines) == ["negative", "neutral", "positive"]


def test_triton_client(server: LiveServer) -> None:
    address = server.url.removeprefix("http://")
    lines = run(sys.executable, str(FOLDER / "triton_client.py"), address, "tiny").splitlines()
    assert [line.split("  ")[2] for line in lines] == ["I loved it", "I want my money back"]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda", "kubernetes.yaml", "kserve.yaml"])
def test_settings_in_containers_exist(name: str) -> None:
    text = (FOLDER / name).read_text()
    named = {word.partition("=")[0].strip("{,:") for word in text.split() if PREFIX in word and "/" not in word}
    assert named
    fields = ServeSettings.__dataclass_fields__
    assert all(each.removeprefix("name:").removeprefix(PREFIX).lower() in fields for each in named), named


def pod_of(name: str) -> Any:
    """Return the specification of the pod in a manifest."""
    documents = list(yaml.safe_load_all((FOLDER / name).read_text()))
    if name == "kserve.yaml":
        return documents[0]["spec"]["predictor"]
    return next(each for each in documents if each["kind"] == "Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_the_manifest_probes_paths_that_the_server_has(server: LiveServer, name: str) -> None:
    pod = pod_of(name)
    (container,) = pod["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert server.get(container[probe]["httpGet"]["path"]).status_code == 200
    assert pod["enableServiceLinks"] is False, "or RAWLOOP_PORT is an address"
    environment = {each["name"]: each.get("value") for each in container["env"]}
    drain_s = sum(float(environment[f"RAWLOOP_DRAIN_{part}_S"]) for part in ("DELAY", "TIMEOUT"))
    assert pod["terminationGracePeriodSeconds"] > drain_s


def test_kserve_finds_http_and_grpc_on_the_ports_of_the_server() -> None:
    (container,) = pod_of("kserve.yaml")["containers"]
    variables = {each["name"]: each["value"] for each in container["env"] if each["name"].startswith(PREFIX)}
    settings = parse_settings(["--bundle", "b"], variables)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.port, "h2c": settings.grpc_port}
    assert settings.model_name == yaml.safe_load((FOLDER / "kserve.yaml").read_text())["metadata"]["name"]


def test_prometheus_scrapes_with_a_key(tmp_path: Path) -> None:
    (job,) = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    with live_server(save_served_bundle(tmp_path / "one"), api_keys=("right",)) as live:
        assert live.get("/metrics").status_code == 401
        headers = {"Authorization": f"{job['authorization']['type']} right"}
        assert live.get("/metrics", headers=headers).status_code == 200


def test_the_alert_is_of_metrics_that_the_server_has() -> None:
    ((rule,),) = (group["rules"] for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"])
    known = {f"rawloop_{name}" for name in ("drift", "drift_limit")}
    assert set(rule["expr"].split()) - {">"} == known <= {family.name for family in Metrics().registry.collect()}
