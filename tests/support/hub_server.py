"""A stand-in of the Hub's HTTP API: repositories, commits of small and LFS files, tags, downloads; in memory."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import requests

TOKEN = "hf_secret"
LFS_SUFFIXES = (".safetensors", ".onnx", ".png")


@dataclasses.dataclass
class Commit:
    oid: str
    files: dict[str, bytes]


@dataclasses.dataclass
class Repository:
    private: bool
    commits: list[Commit] = dataclasses.field(default_factory=lambda: [Commit("0" * 40, {".gitattributes": b""})])
    tags: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def at(self, revision: str) -> Commit:
        oid = self.tags.get(revision, revision)
        return next((each for each in self.commits if each.oid == oid), self.commits[-1])


class Hub:
    """The state of the stand-in, and what it does wrong."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.received: list[str] = []  # hashes of the LFS files that arrived whole
        self.breaks = 0  # LFS uploads whose connection breaks in the middle
        self.lost_answers = 0  # commits that are made without an answer
        self.may_write = True
        self.address = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.command == "PUT":
            return self._put_blob(path.rpartition("/")[2])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        place = re.fullmatch(
            r"(?:/api/models)?/(\w+/[\w.-]+?)(?:\.git)?(?:/(refs|tree|preupload|info|commit|tag|revision|resolve)(?:/(\w+)(?:/(.+))?)?)?",
            path,
        )
        repository = place and self.hub.repositories.get(place[1])
        if not repository or (repository.private and not has_token):
            return self._answer(
                401 if place else 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            )
        name, what, revision, file = place.groups()
        if self.command == "POST" and not self.hub.may_write:
            return self._answer(403, {"error": f"Token {TOKEN} is read-only"})
        return getattr(self, f"_{what or 'revision'}")(name, repository, revision or "main", file or "", body)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request  # noqa: N815

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _create(self, given: dict[str, Any]) -> None:
        name = f"{given['organization'] or 'me'}/{given['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repositories:
            return self._answer(409, {**url, "error": "You already created this model repo"})
        if not self.hub.may_write:
            return self._answer(403, {"error": f"Token {TOKEN} is read-only"})
        is_private = given.get("private", given.get("visibility") == "private")  # the latter from version 2
        self.hub.repositories[name] = Repository(is_private)
        return self._answer(200, url)

    def _refs(self, name: str, repository: Repository, *_: Any) -> None:
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repository.tags.items()]
        self._answer(200, {"branches": [], "converts": [], "tags": tags})

    def _tree(self, name: str, repository: Repository, revision: str, folder: str, _: bytes) -> None:
        files = repository.at(revision).files
        if folder:
            return self._answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        return self._answer(
            200, [{"type": "file", "path": path, "size": len(each), "oid": _sha1(each)} for path, each in files.items()]
        )

    def _preupload(self, name: str, repository: Repository, revision: str, _: str, body: bytes) -> None:
        files = []
        for each in json.loads(body)["files"]:
            there, is_lfs = repository.files.get(each["path"]), each["path"].endswith(LFS_SUFFIXES)
            oid = None if there is None else _sha256(there) if is_lfs else _sha1(there)
            mode = "lfs" if is_lfs else "regular"
            files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files})

    def _info(self, name: str, repository: Repository, *rest: Any) -> None:
        objects: list[dict[str, Any]] = []
        for each in json.loads(rest[-1])["objects"]:
            upload = {"href": f"{self.hub.address}/lfs/{each['oid']}?X-Amz-Signature=abc", "header": {}}
            objects.append(each if each["oid"] in self.hub.blobs else {**each, "actions": {"upload": upload}})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _put_blob(self, oid: str) -> None:
        length = int(self.headers["Content-Length"])
        if self.hub.breaks:
            self.hub.breaks -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        content = self.rfile.read(length)
        assert _sha256(content) == oid
        self.hub.blobs[oid] = content
        self.hub.received.append(oid)
        self._answer(200, {})

    def _commit(self, name: str, repository: Repository, revision: str, _: str, body: bytes) -> None:
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = _sha1(body)
        repository.commits.append(Commit(oid, files))
        if self.hub.lost_answers:
            self.hub.lost_answers -= 1
            self.close_connection = True
            return
        self._answer(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def _tag(self, name: str, repository: Repository, revision: str, _: str, body: bytes) -> None:
        tag = json.loads(body)["tag"]
        if tag in repository.tags:
            return self._answer(409, {"error": "Tag exists"})
        repository.tags[tag] = repository.at(revision).oid
        return self._answer(200, {})

    def _revision(self, name: str, repository: Repository, revision: str, *_: Any) -> None:
        commit = repository.at(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        self._answer(200, {"id": name, "sha": commit.oid, "private": repository.private, "siblings": siblings})

    def _resolve(self, name: str, repository: Repository, revision: str, file: str, _: bytes) -> None:
        commit = repository.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if file not in commit.files:
            return self._answer(404, {"error": "no such file"}, {**headers, "X-Error-Code": "EntryNotFound"})
        return self._answer(200, commit.files[file], {**headers, "ETag": f'"{_sha256(commit.files[file])}"'})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """Run the stand-in on this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def online() -> Iterator[None]:
    """Let huggingface_hub connect: the tests' offline mode would refuse this machine, too."""
    if not hasattr(huggingface_hub, "configure_http_backend"):  # from version 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
            yield
        return
    huggingface_hub.configure_http_backend(requests.Session)
    yield
    huggingface_hub.configure_http_backend()


@contextlib.contextmanager
def connected_hub() -> Iterator[Hub]:
    """Run the stand-in, and let this process's huggingface_hub use it with a token and without waiting."""
    with running_hub() as hub, online(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # another protocol, for large files
        patch.setattr("time.sleep", lambda seconds: None)
        yield hub
