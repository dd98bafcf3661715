"""Flags and RAWLOOP_* variables: same names, same meaning, one message with all problems."""

import dataclasses
from pathlib import Path

import pytest

from serve.contract.command import given_arguments
from serve.contract.errors import InputError
from serve.http.keys import Keys
from serve.http.settings import PREFIX, ServeSettings, parse_settings


def test_flags_win_over_variables() -> None:
    environment = {"RAWLOOP_BUNDLE": "from-variable", "RAWLOOP_PORT": "1", "RAWLOOP_API_KEYS": "a, b", "HOME": "/"}
    settings = parse_settings(["--port", "2"], environment)
    assert (settings.bundle, settings.port, settings.api_keys) == ({"": Path("from-variable")}, 2, ("a", "b"))


def test_flags_may_be_spelled_with_dashes() -> None:
    found = parse_settings(given_arguments(["--bundle=a-b_c", "--max-length", "64", "--max-batch-tokens=128"]), {})
    assert (found.bundle, found.max_length, found.max_batch_tokens) == ({"": Path("a-b_c")}, 64, 128)


def test_every_setting_has_a_flag_a_variable_and_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_settings(["--help"], {})
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(ServeSettings):
        assert f"--{field.name} " in shown
        assert PREFIX + field.name.upper() in shown
        assert (ServeSettings.__pydantic_fields__[field.name].description or "nothing") in shown


@pytest.mark.parametrize(
    ("argv", "variable"),
    [
        (["--bundle", "a=x", "--bundle", "b=y=1,z"], None),
        (["--bundle", "a=x,b=y=1,z"], None),
        ([], "a=x,b=y=1,z"),
        (["--bundle", "a=x,b=y=1,z"], "c=z"),
    ],
)
def test_several_bundles_have_names(argv: list[str], variable: str | None) -> None:
    found = parse_settings(argv, {} if variable is None else {"RAWLOOP_BUNDLE": variable})
    assert found.bundle == {"a": Path("x"), "b": Path("y=1,z")}


@pytest.mark.parametrize("folder", ["x", "/data/date=2026/onnx", "./date=2026", "a,b", "a,b=c"])
def test_one_folder_needs_no_name_whatever_is_in_its_path(folder: str) -> None:
    assert parse_settings(["--bundle", folder], {}).bundle == {"": Path(folder)}


def test_values_are_read_by_their_kind() -> None:
    environment = {"RAWLOOP_LOG_JSON": "true", "RAWLOOP_ACCESS_LOG": "0", "RAWLOOP_DRAIN_DELAY_S": "0.5"}
    settings = parse_settings(["--bundle", "b", "--max_length", "64", "--variant", "int8"], environment)
    assert (settings.log_json, settings.access_log, settings.drain_delay_s) == (True, False, 0.5)
    assert (settings.max_length, settings.variant) == (64, "int8")


@pytest.mark.parametrize(
    ("argv", "environment", "complaint"),
    [
        ([], {}, "--bundle"),
        (["--bundle", ""], {}, "--bundle: pass the folder"),
        (["--bundle", "x", "--bundle", "y"], {}, "--bundle x --bundle y: .*needs a name.*write --bundle NAME=DIR"),
        (["--bundle", "a=x", "--bundle", "a=y"], {}, "a name of its own"),
        ([], {"RAWLOOP_BUNDLE": "a=x,a=y"}, "a name of its own"),
        (["--bundle", "a=x", "--model_name", "b"], {}, "--model_name b: --bundle has a name already"),
        (["--bundle", "b", "--otlp_endpoint", "localhost:4318"], {}, "--otlp_endpoint must be a URL, such as http://"),
        (["--bundle", "b", "--root_path", "a"], {}, "--root_path must be a path, such as /prefix"),
        (["--bundle", "b", "--root_path", "/a/"], {}, "without a slash at its end, and not /models/NAME"),
        (["--bundle", "b", "--port", "many"], {}, "--port: Input should be a valid integer, .* found 'many'"),
        (["--bundle", "b", "--port", "70000"], {}, "from 0 "),
        (["--bundle", "b", "--grpc_port", "8000"], {}, "--grpc_port 8000: HTTP has this --port; choose another"),
        (["--bundle", "b"], {"RAWLOOP_PORT": "x"}, "RAWLOOP_PORT"),
        (["--bundle", "b"], {"RAWLOOP_PROT": "1"}, "RAWLOOP_PROT: no such setting"),
        (["--bundle", "b"], {"RAWLOOP_LOG_JSON": "maybe"}, "RAWLOOP_LOG_JSON: Input should be a valid boolean"),
        (["--bundle", "b", "--device", "tpu"], {}, "'auto', 'cpu' or 'cuda'"),
        (["--bundle", "b", "--tls_cert", "/nowhere.pem"], {}, "go together"),
        (["--bundle", "b", "--tls_cert", "/nowhere.pem", "--tls_key", "/nowhere.pem"], {}, "no such file"),
        (["--bundle", "b", "--model_name", "a/b"], {}, "--model_name a/b: a name with a slash .* write a-b"),
        (["--bundle", "b", "--max_queued_tokens", "0"], {}, "--max_queued_tokens must be at least 1, found 0"),
        (["--bundle", "b", "--drift_window", "5"], {}, "--drift_window must be at least 100, or 0 for none, found 5"),
        (["--bundle", "b", "--drain_delay_s", "nan"], {}, "0 or more"),
        (["--bundle", "b", "--drain_timeout_s", "inf"], {}, "finite"),
        (["--bundle", "b"], {"RAWLOOP_API_KEYS": ""}, "RAWLOOP_API_KEYS: set, but holds no key"),
        (["--bundle", "b"], {"RAWLOOP_API_KEYS": " ,\n"}, "holds no key"),
        (["--bundle", "b"], {"RAWLOOP_ADMIN_KEYS": ""}, "holds no key"),
        (["--bundle", "b"], {"RAWLOOP_API_KEYS_FILE": ""}, "RAWLOOP_API_KEYS_FILE: set, but holds no key"),
        (["--bundle", "b", "--api_keys", ","], {}, "--api_keys: set, but"),
        (["--bundle", "b"], {"RAWLOOP_PORT": "tcp://10.0.0.1:80"}, "enableServiceLinks: false"),
        (["--bundle", "b", "--port", "1"], {"RAWLOOP_SERVICE_HOST": "10.0.0.1"}, "enableServiceLinks: false"),
        (["--bundle", "b", "--request_timeout_ms", "90000"], {}, "--max_request_timeout_ms"),
        (["--bundle", "b", "--api_keys_file", "/nowhere"], {}, "no such file"),
        (["--bundle", "b", "--devices", "0,x"], {}, "--devices: Input should be a valid integer"),
        (["--bundle", "b", "--devices", "0,-1"], {}, "--devices 0,-1: .* counted from 0"),
        (["--bundle", "b"], {"RAWLOOP_DEVICES": "0,1,0"}, "--devices 0,1,0: a GPU is named twice"),
        (["--bundle", "b", "--device", "cpu", "--devices", "1"], {}, "--devices 1: .* choose --device cuda"),
    ],
)
def test_problems_are_named_with_their_source(argv: list[str], environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        parse_settings(argv, environment)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InputError) as error:
        parse_settings(["--bundle", "b", "--port", "x", "--threads", "y"], {"RAWLOOP_MAX_INPUTS": "z"})
    assert all(name in str(error.value) for name in ("--port", "--threads", "RAWLOOP_MAX_INPUTS"))


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    settings = parse_settings(["--bundle", "b", "--api_keys_file", str(path)], {})
    with pytest.raises(InputError, match="holds no key"):
        Keys(settings)
