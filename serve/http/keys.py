"""API keys for clients and for operators, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path

from serve.batching.request_errors import Forbidden, Unauthorized
from serve.contract.errors import InputError
from serve.http.settings import ServeSettings


class Keys:
    """The keys of a server, from the settings and from their file as it is now. An admin key opens everything.

    Raises:
        InputError: the file cannot be read, or holds no key.
    """

    def __init__(self, settings: ServeSettings) -> None:
        api_keys = [*settings.api_keys, *(_keys_in(settings.api_keys_file) if settings.api_keys_file else ())]
        self._admin = _digests(settings.admin_keys)
        self._client = _digests([*api_keys, *settings.admin_keys] if api_keys else [])  # none: anyone may call

    def become(self, other: "Keys") -> None:
        """Take over the keys of another."""
        self._admin, self._client = other._admin, other._client

    def require_client(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a client's request pass: any if no keys are set, else raise Unauthorized without a valid one."""
        if self._client:
            _require(self._client, headers)

    def require_admin(self, headers: Mapping[bytes, bytes]) -> None:
        """Let an operator's request pass; raises Forbidden if no admin keys are set, else Unauthorized without one."""
        if not self._admin:
            raise Forbidden("start the server with --admin_keys to use this")
        _require(self._admin, headers)


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api_keys_file: {file}: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise InputError(f"--api_keys_file: {file} holds no key; write one a line")
    return keys


def _digests(keys: Iterable[str]) -> list[bytes]:
    return [hashlib.sha256(key.encode()).digest() for key in keys]


def _require(digests: Iterable[bytes], headers: Mapping[bytes, bytes]) -> None:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        key = headers.get(b"x-api-key", b"")
    if not key:
        raise Unauthorized("send a key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    digest = hashlib.sha256(key.strip()).digest()
    if not sum(hmac.compare_digest(each, digest) for each in digests):  # all are compared, whichever matches
        raise Unauthorized("this key is not valid here")
