import hashlib
import json
import os
from pathlib import Path

import pytest

from serve.contract import files


def test_write_bytes_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new\x00\r\n")
    assert path.read_bytes() == b"new\x00\r\n"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["write_bytes", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half_written(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    if failing == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", half_written)
    else:
        monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(OSError, match=r"No space|Input/output"):
        files.write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_bytes_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, replace = files.flush_to_disk, Path.replace
    monkeypatch.setattr(files, "flush_to_disk", lambda path: (events.append(f"flush {path.suffix}"), flush(path)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))[1])
    files.write_bytes(tmp_path / "file.json", b"x")
    assert events == ["flush .tmp", "rename", "flush "]


def test_write_json_is_readable_utf8_with_a_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, {"b": [1, 0.1], "a": "ж"})
    text = path.read_text(encoding="utf-8")
    assert "ж" in text
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}])
def test_write_json_rejects_what_json_cannot_represent(tmp_path: Path, value: object) -> None:
    path = tmp_path / "value.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, value)
    assert path.read_text(encoding="utf-8") == "1\n"


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert files.sha256_of_file(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def make_folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def content_of(folder: Path) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in folder.iterdir()}


def test_a_folder_replaces_another(tmp_path: Path) -> None:
    make_folder(tmp_path / "final", "old")
    files.replace_folder(make_folder(tmp_path / "staged", "new"), tmp_path / "final")
    assert content_of(tmp_path) == {"final": "new"}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_of_a_folder_follow_the_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        with files.staged_folder(tmp_path / "model") as staged:
            (staged / "config.json").write_text("{}")
            (staged / "model.safetensors").touch(0o600)  # as safetensors writes it
            (staged / "run.sh").touch(0o700)
    finally:
        os.umask(previous)
    found = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert found == {
        "config.json": 0o666 & ~umask,
        "model.safetensors": 0o666 & ~umask,
        "run.sh": 0o700 | 0o666 & ~umask,
    }


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged, final = make_folder(tmp_path / "staged", "new"), make_folder(tmp_path / "final", "old")
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if self == staged:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.replace_folder(staged, final)
    assert content_of(tmp_path) == {"staged": "new", "final": "old"}


def test_a_folder_retired_before_a_kill_is_kept_until_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / ".final.retired", "old")
    with pytest.raises(FileNotFoundError):
        files.replace_folder(tmp_path / "absent", tmp_path / "final")
    assert content_of(tmp_path) == {"final": "old"}
    (tmp_path / "final").rename(tmp_path / ".final.retired")
    files.replace_folder(make_folder(tmp_path / "staged", "new"), tmp_path / "final")
    assert content_of(tmp_path) == {"final": "new"}


def test_a_folder_that_cannot_be_written_is_known_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert files.why_unwritable(tmp_path / "new" / "results") is None
    assert files.why_unwritable(file) == "this is a file; name a folder"
    assert files.why_unwritable(file / "new") == f"{file} is not a folder that you may write to; name another"
    monkeypatch.setattr("os.access", lambda *_: False)  # as on a disk that is read-only
    assert files.why_unwritable(tmp_path / "new") == f"{tmp_path} is not a folder that you may write to; name another"
