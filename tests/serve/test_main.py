"""`python -m serve`, started and stopped as people do."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton
from live_server import TIMEOUT_S, save_served_bundle

from serve.__main__ import main
from serve.contract.errors import InputError
from serve.http.server import _address_errors, _bound_socket, run_server
from serve.http.settings import ServeSettings

RELOADS = {"first": "refused", "second": "done"}
HEAVY = ("torch", "transformers", "datasets", "optimum", "onnx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")


@contextlib.contextmanager
def started(bundle: Path | str, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start a server and yield it with its address."""
    command = [sys.executable, "-m", "serve", "--bundle", str(bundle), "--port", "0", "--log_json", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = None
    for line in process.stderr:
        url = json.loads(line).get("url") if line.startswith("{") else None
        if url:
            break
    try:
        assert url, f"it ended with status {process.wait(TIMEOUT_S)}"
        threading.Thread(target=process.stderr.read, daemon=True).start()  # an unread pipe would fill up
        yield process, url
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT_S)
        time.sleep(0.05)
        process.stderr.close()


@contextlib.contextmanager
def taken_port() -> Iterator[str]:
    """Yield a port on which someone listens until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "serve", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_sigterm_under_load_loses_nothing_that_was_accepted(bundle: Path) -> None:
    """Clients with open connections get nothing but answers, until one asks them to go elsewhere."""
    with started(bundle, "--drain_delay_s", "0.5", "--threads", "2") as (process, url):
        answered = threading.Semaphore(0)

        def client() -> list[int]:
            statuses = []
            with requests.Session() as session:
                while True:
                    answer = session.post(f"{url}/predict", json={"inputs": "w1 good"}, timeout=TIMEOUT_S)
                    statuses.append(answer.status_code)
                    answered.release()
                    if answer.headers.get("connection") == "close":
                        return statuses

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            clients = [pool.submit(client) for _ in range(6)]
            for _ in range(20):
                assert answered.acquire(timeout=TIMEOUT_S)
            process.send_signal(signal.SIGTERM)
            statuses = [status for each in clients for status in each.result(TIMEOUT_S)]
        assert process.wait(TIMEOUT_S) == 0
    assert len(statuses) > 20, "answers go on after the signal"
    assert set(statuses) == {200}


def test_sigterm_loses_nothing_that_was_accepted_over_grpc(bundle: Path) -> None:
    with taken_port() as port:
        flags = ("--grpc-port", port, "--drain_delay_s", "0", "--threads", "2")
    many = 40_000  # takes seconds
    limits = ("--max_inputs", str(many), "--max_queued_tokens", str(20 * many), "--stall_after_s", "60")
    patience = ("--request_timeout_ms", "120000", "--max_request_timeout_ms", "120000", "--drain_timeout_s", "120")
    place = ("127.0.0.1", int(port))
    with (
        started(bundle, *flags, *limits, *patience) as (process, url),
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        texts = triton.InferInput("text", [many], "BYTES")
        texts.set_data_from_numpy(np.array([b"w1 good"] * many, dtype=np.object_))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            accepted = pool.submit(client.infer, "tiny", [texts])
            while "rawloop_queued_inputs 0.0" in requests.get(f"{url}/metrics", timeout=TIMEOUT_S).text:
                assert not accepted.done()
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(ConnectionRefusedError):
                while True:
                    socket.create_connection(place).close()
            assert accepted.result(TIMEOUT_S).as_numpy("label").shape == (many,)
        assert process.wait(TIMEOUT_S) == 0


def test_sighup_reloads(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(bundle)
    other = save_served_bundle(tmp_path / "other", labels=("no", "perhaps", "yes"))
    with started(link) as (process, url):
        before = requests.get(f"{url}/v1/model", timeout=TIMEOUT_S).json()["version"]
        link.unlink()
        link.symlink_to(other)
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + TIMEOUT_S
        while (now := requests.get(f"{url}/v1/model", timeout=TIMEOUT_S).json())["version"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert now["labels"] == ["no", "perhaps", "yes"]


def test_a_reload_that_fails_does_not_end_the_watch_for_signals(tmp_path: Path) -> None:
    folder = save_served_bundle(tmp_path / "one")
    with started(folder, "--drain_delay_s", "0") as (process, url):
        whole = (folder / "bundle.json").read_text()

        def reload(content: str, result: str) -> None:
            (folder / "bundle.json").write_text(content)
            process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + TIMEOUT_S
            while (
                f'reloads_total{{result="{result}"}} 1.0' not in requests.get(f"{url}/metrics", timeout=TIMEOUT_S).text
            ):
                assert time.monotonic() < deadline
                time.sleep(0.02)

        reload("[" * 200_000, "refused")
        reload(whole, "done")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_a_model_is_not_frozen_so_that_a_reload_frees_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def load(*arguments: object, **options: object) -> None:
        steps.append("load")
        raise InputError("enough")

    monkeypatch.setattr("serve.http.server.sys.setswitchinterval", lambda seconds: None)
    monkeypatch.setattr("serve.http.server.gc.freeze", lambda: steps.append("freeze"))
    monkeypatch.setattr("serve.http.server.load_engine", load)
    with pytest.raises(InputError, match="enough"):
        run_server(ServeSettings(bundle=bundle, port=0))
    assert steps == ["freeze", "load"]


def test_sighup_reloads_all_models_although_one_cannot_be(bundle: Path, tmp_path: Path) -> None:
    broken = save_served_bundle(tmp_path / "broken")
    with started(f"first={broken}", "--bundle", f"second={bundle}", "--drain_delay_s", "0") as (process, url):
        (broken / "bundle.json").write_text("{")
        process.send_signal(signal.SIGHUP)
        expected = [f'reloads_total{{model="{name}",result="{result}"}} 1.0' for name, result in RELOADS.items()]
        deadline = time.monotonic() + TIMEOUT_S
        while not all(line in requests.get(f"{url}/metrics", timeout=TIMEOUT_S).text for line in expected):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for name in RELOADS:
            answer = requests.post(f"{url}/models/{name}/predict", json={"inputs": "w1 good"}, timeout=TIMEOUT_S)
            assert answer.json()[0]["label"] == "positive"
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0


def test_one_of_several_bundles_that_cannot_be_served_refuses_the_start(bundle: Path) -> None:
    ended = run("--bundle", f"first={bundle}", "--bundle", "second=/nowhere", "--port", "0")
    assert ended.returncode == 2
    assert "--bundle second=" in ended.stderr
    assert "/nowhere/bundle.json: no such file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_second_sigterm_does_not_wait_for_clients(bundle: Path) -> None:
    hours = ("--drain_timeout_s", "7200", "--request_timeout_ms", "7200000", "--max_request_timeout_ms", "7200000")
    with started(bundle, "--drain_delay_s", "0", *hours) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as client:
            headers = b"Host: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n"
            client.sendall(b"POST /predict HTTP/1.1\r\n" + headers + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 100 "), "the server waits for the body"
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None, "it waits for the client"
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0


def test_nothing_heavy_is_loaded(bundle: Path) -> None:
    with started(bundle) as (process, url):
        assert requests.post(f"{url}/predict", json={"inputs": "good"}, timeout=TIMEOUT_S).status_code == 200
        mapped = Path(f"/proc/{process.pid}/maps")
        if not mapped.exists():
            pytest.skip("needs /proc to look into the server's process")
        text = mapped.read_text()
        assert "onnxruntime" in text
        assert not [name for name in HEAVY if f"/site-packages/{name}/" in text]


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_cuda_that_is_not_there_is_refused(bundle: Path) -> None:
    ended = run("--bundle", str(bundle), "--device", "cuda", "--port", "0")
    assert ended.returncode == 2
    assert "device cuda" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "--bundle"),
        (("--bundle", "/nowhere"), "no such file"),
        (("--bundle", "{bundle}", "--variant", "int8"), "no variant 'int8'"),
        (("--bundle", "{bundle}", "--max-length", "999"), "max_length 999"),
        (("--bundle", "{bundle}", "--host", "192.0.2.1"), "choose an address of this machine"),
        (("--bundle", "{bundle}", "--host", "no-such-host.invalid"), "choose an address of this machine"),
        (("--bundle", "{bundle}", "--drain_timeout_s", "inf"), "--drain_timeout_s"),
        (("--bundle", "{bundle}", "--port", "0", "--tls_cert", "{junk}", "--tls_key", "{junk}"), "--tls_cert"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    bundle: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("serve.http.observability.logs.set_up_logs", lambda *_, **__: None)  # those of the tests stay
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    try:
        status = main([each.format(bundle=bundle, junk=junk) for each in arguments])
    except SystemExit as ended:  # argparse's
        status = ended.code
    assert (status, complaint in capsys.readouterr().err) == (2, True)


def test_a_port_that_is_taken_is_refused(bundle: Path) -> None:
    with taken_port() as taken:
        ended = run("--bundle", str(bundle), "--port", taken)
        assert (ended.returncode, "choose another port" in ended.stderr) == (2, True)
        ended = run("--bundle", str(bundle), "--port", "0", "--grpc_port", taken)
    message = (
        f"error: --host 127.0.0.1 --grpc_port {taken}: Address already in use; choose another port, or 0 for any\n"
    )
    assert (ended.returncode, ended.stderr) == (2, message)


def test_grpc_without_its_packages_says_what_to_install(bundle: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None; from serve.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = ("--bundle", str(bundle), "--port", "0", "--grpc_port", "0")
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 2
    assert "pip install 'rawloop[cpu,server,grpc]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_while_the_model_loads_is_refused_too(bundle: Path) -> None:
    settings = ServeSettings(bundle=bundle, port=0)
    with _bound_socket(settings) as first:
        same = dataclasses.replace(settings, port=first.getsockname()[1])
        with _bound_socket(same) as second:  # allowed, since neither listens yet
            first.listen()
            with pytest.raises(InputError, match="choose another port"), _address_errors(same):
                second.listen()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    folder = save_served_bundle(tmp_path / "damaged")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"good", b"evil"))
    ended = run("--bundle", str(folder), "--port", "0")
    assert (ended.returncode, "tokenizer.json is damaged" in ended.stderr) == (2, True)
