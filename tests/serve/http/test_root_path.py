"""Behind a proxy that shows the server under a prefix, whether or not it removes it before it asks."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from live_server import TIMEOUT_S, LiveServer, live_server, save_served_bundle
from prefix_proxy import prefix_proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(save_served_bundle(tmp_path_factory.mktemp("bundles") / "one"), root_path="/shown/here") as live:
        yield live


@pytest.fixture(scope="module", params=[True, False], ids=["stripped", "kept"])
def url(request: pytest.FixtureRequest, server: LiveServer) -> Iterator[str]:
    with prefix_proxy(server.url, "/shown/here", strips=request.param) as shown:
        yield shown


def test_routes_answer(url: str) -> None:
    assert requests.get(f"{url}/health", timeout=TIMEOUT_S).status_code == 200
    answer = requests.post(f"{url}/v1/models/tiny:predict", json={"instances": ["w1 good"]}, timeout=TIMEOUT_S)
    assert answer.json()["predictions"][0]["label"] == "positive"
    assert requests.post(f"{url}/models/tiny", json={"inputs": "w1"}, timeout=TIMEOUT_S).status_code == 200


def test_the_documentation_names_paths_with_the_prefix(url: str) -> None:
    root = url[: -len("/shown/here")]
    page = requests.get(f"{url}/docs", timeout=TIMEOUT_S).text
    (found,) = re.findall(r"url: ['\"]([^'\"]*openapi\.json)", page)
    document = requests.get(root + found, timeout=TIMEOUT_S).json()
    (shown,) = document["servers"]
    assert requests.get(f"{root}{shown['url']}/v1/model", timeout=TIMEOUT_S).json()["name"] == "tiny"


@pytest.mark.parametrize("page", ["/docs", "/models/tiny/docs"])
def test_the_documentation_loads_everything_from_this_server(url: str, page: str) -> None:
    loaded = re.findall(r"""(?:src|href)="([^"]+)""", requests.get(url + page, timeout=TIMEOUT_S).text)
    assert len(loaded) >= 2, "a script and a style"
    for path in loaded:
        assert path.startswith("/shown/here/")
        answer = requests.get(url.removesuffix("/shown/here") + path, timeout=TIMEOUT_S)
        assert (answer.status_code, len(answer.content) > 0) == (200, True), path


def test_the_page_asks_for_nothing_outside_the_prefix(url: str) -> None:
    page = requests.get(f"{url}/ui", timeout=TIMEOUT_S).text
    assert not re.search(r"""["'(`]/(?!/)\w""", page), "every path is relative to the page's own"


def test_an_unknown_path_is_told_where_the_documentation_is(url: str) -> None:
    answer = requests.get(f"{url}/nothing", timeout=TIMEOUT_S)
    assert answer.status_code == 404
    assert "/shown/here/docs lists them" in answer.text


def test_a_path_that_only_begins_alike_has_no_prefix(server: LiveServer) -> None:
    assert server.get("/shown/hereabouts/health").status_code == 404
    assert server.get("/shown/here/shown/here/health").status_code == 404, "the prefix counts once"


def test_without_a_prefix_paths_are_what_they_were(tmp_path: Path) -> None:
    with live_server(save_served_bundle(tmp_path / "one")) as live:
        assert "servers" not in live.get("/openapi.json").json()
        assert "'/openapi.json'" in live.get("/docs").text.replace('"', "'")
        assert "path; /docs lists them" in live.get("/nothing").text
