"""The upload of a run to the Hub, in one commit: the model with its card, the report and pictures, the bundle."""

import contextlib
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serve.contract.bundle import BUNDLE_FILE, read_bundle
from serve.contract.classifier import CLASSIFIER_FILE, read_classifier
from serve.contract.errors import InputError, WorkStopped, first_line

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

T = TypeVar("T")
Notify = Callable[[str], None]

FOLDERS = ("onnx/", "results/")
MODEL_SUFFIXES = (".bin", ".json", ".model", ".safetensors", ".txt")
"""Files that belong to a model, at the top of a repository: those of an earlier one are removed."""
WAITS_S = (2.0, 10.0)
"""Before another attempt, after a broken connection; huggingface_hub itself tries each large file six times."""


def require_uploadable(repository: str, where: str = "") -> None:
    """Check what needs no connection: the name of a repository, and that there is a token.

    Raises:
        InputError: the Hub allows no such name, or no token is found; the message begins with `where`.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it has no __all__

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(
            f"{where}{repository}: not a repository's name, which is NAME or OWNER/NAME: {error}"
        ) from error
    if get_token() is None:
        remedy = "make one that may write, in the Hub's settings, and run `hf auth login`, or set HF_TOKEN"
        raise InputError(f"{where}no token for the Hub; {remedy}")


def upload(run: Path, repository: str, notify: Notify, *, tag: str | None = None, public: bool = False) -> None:
    """Bring a repository to the state of a run, in one commit, and tag that; a new repository is private by default.

    What the Hub has already is not sent again. Files of an earlier model in the repository are removed.

    Raises:
        InputError: the run is not finished or its bundle is damaged, there is no such name or no token, the token may
            not write there, or the tag exists.
        WorkStopped: the connection broke again and again, or the Hub refused; repeating it goes on.
    """
    files = _files_of(run, notify)
    if tag is not None and not re.fullmatch(r"\w[\w.-]*", tag):
        raise InputError(f"--tag {tag!r}: expected letters, digits, '.', '-' and '_', such as v1")
    require_uploadable(repository)
    notify(f"Uploading {len(files)} files to {repository} ...")
    # Imported here: most runs are not uploaded.
    from huggingface_hub import HfApi

    api = HfApi()
    with _explained(repository):
        name = _retried(lambda: api.create_repo(repository, private=not public, exist_ok=True)).repo_id
        if tag is not None:
            _require_new(tag, name, api)
        files["README.md"] = _card_of(run, name)
        message = f"rawloop: {run.resolve().name}"
        commit = _retried(lambda: api.create_commit(name, _operations(api, name, files), commit_message=message))
        if tag is not None:
            # exist_ok: if its answer was lost, the tag is there.
            _retried(lambda: api.create_tag(name, tag=tag, revision=commit.oid, exist_ok=True))
    notify(f"On the Hub: {commit.commit_url}" + ("" if tag is None else f", tagged {tag}"))


def push_to_hub(run: Path, repository: str, notify: Notify) -> None:
    """Upload a run that has just finished.

    Raises:
        WorkStopped: it failed; the message says how to upload the run later.
    """
    try:
        upload(run, repository, notify)
    except Exception as error:  # whatever fails, the run is finished
        again = f"python -m train_loop.hub --run {shlex.quote(os.path.relpath(run))} --repository {repository}"
        raise WorkStopped(
            f"--push_to_hub {_plain(error)}. The run is finished, nothing of it is lost. To upload it later: {again}"
        ) from error


def _files_of(run: Path, notify: Notify) -> dict[str, Path | bytes]:
    """Return what is uploaded: path in the repository -> file."""
    model, bundle = run / "model", run / "onnx"
    if not (model / CLASSIFIER_FILE).is_file():
        raise InputError(f"{run}: no finished run, as it has no model/; pass a run directory such as runs/latest")
    results = [run / "results" / "report.html", *sorted((run / "results").glob("*.png"))]
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(model.iterdir()) if path.is_file()}
    files |= {f"results/{path.name}": path for path in results if path.is_file()}
    if not (bundle / BUNDLE_FILE).is_file():
        return files
    found, own = read_bundle(bundle), read_classifier(model)
    # Not all of the contract, to which export may add.
    if (found.classifier.temperature, found.classifier.metrics) != (own.temperature, own.metrics):
        notify(f"{bundle} is of an earlier model and stays here; export the run again, then upload it again")
        return files
    return files | {f"onnx/{name}": bundle / name for name in (*found.manifest.files, BUNDLE_FILE)}


def _card_of(run: Path, repository: str) -> bytes:
    """Return the card with the repository's name where it shows how to load the model."""
    name, card = read_classifier(run / "model").name, (run / "model" / "README.md").read_text(encoding="utf-8")
    return card.replace(f'"text-classification", "{name}"', f'"text-classification", "{repository}"').encode()


def _require_new(tag: str, repository: str, api: "HfApi") -> None:
    refs = _retried(lambda: api.list_repo_refs(repository))
    if there := next((each.target_commit for each in refs.tags if each.name == tag), None):
        raise InputError(
            f"--tag {tag}: {repository} has that tag already, at commit {there[:12]}; nothing was uploaded. Choose "
            "another tag"
        )


def _operations(
    api: "HfApi", repository: str, files: dict[str, Path | bytes]
) -> "list[CommitOperationAdd | CommitOperationDelete]":
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    stale = [
        name
        for name in api.list_repo_files(repository)
        if name not in files and (name.startswith(FOLDERS) or ("/" not in name and name.endswith(MODEL_SUFFIXES)))
    ]
    return [*(CommitOperationAdd(*file) for file in files.items()), *map(CommitOperationDelete, stale)]


def _retried(call: Callable[[], T]) -> T:
    """Return the result of a call that may be repeated; after a broken connection, or an error of the Hub's, repeat."""
    for wait_s in WAITS_S:
        try:
            return call()
        except Exception as error:
            if not _is_passing(error):
                raise
        time.sleep(wait_s)
    return call()


def _is_passing(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, OSError) and error.filename:  # a file of the run
        return False
    if status := _status(error):
        return status >= 500 or status == 429
    # requests' errors are OSErrors, httpx's have the base that version 1 of huggingface_hub gives its own.
    return isinstance(error, (OSError, *HfHubHTTPError.__bases__))


def _status(error: Exception) -> int | None:
    """Return the status of the answer that an error of the Hub's client is about, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the client raises many types
        if _status(error) in (401, 403):
            raise InputError(
                f"{repository}: the Hub does not let your token write there ({_plain(error)}); make one that may, "
                "in the Hub's settings, run `hf auth login`, and repeat the upload"
            ) from None
        if (status := _status(error)) is not None and status < 500 and status not in (408, 429):
            raise InputError(f"{repository}: the Hub refused it ({_plain(error)}); nothing was uploaded") from None
        if isinstance(error, OSError) and error.filename:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); nothing was uploaded") from None
        raise WorkStopped(
            f"{repository}: not uploaded ({_plain(error)}). Repeat the upload: what has arrived is not "
            "sent again, and no reader sees a part of it"
        ) from None


def _plain(error: BaseException) -> str:
    """Return why it failed, in a line without what is secret: the token, and the signatures of addresses."""
    from huggingface_hub import get_token

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a large file
        error = error.__cause__
    # requests and urllib3 wrap what happened in one another.
    while inner := [each for each in (getattr(error, "reason", None), *error.args) if isinstance(each, Exception)]:
        error = inner[0]
    text = getattr(error, "server_message", None) or first_line(error)
    line = text.splitlines()[0].rstrip(".").replace(get_token() or "\0", "[token]")
    return re.sub(r"\?\S+", "?...", line)
