"""What s3:// and https:// share: obstore, which is imported on the first such path, its streams and its errors."""

import functools
import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dist_diffusion.storage import service
from dist_diffusion.storage.environment import CONNECT_TIMEOUT, Settings, settings

if TYPE_CHECKING:
    from obstore import BytesStream
    from obstore.store import HTTPStore, S3Config, S3Store

_BLOCK = 1 << 20
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_KIND = re.compile(r"\bkind: (Timeout|Connect|Interrupted)\b")
_ROLE = re.compile(r"://[^/]+/latest/(api/token|meta-data)")
"""Addresses that are asked for the role of a machine of Amazon's, where the environment holds no credentials."""
NO_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket (docs/storage.md)"
)
_WORDS = {"Timeout": service.NO_ANSWER, "Connect": service.NO_CONNECTION, "Interrupted": service.BROKEN}
_user: int | None = None


def obstore() -> ModuleType:
    """The library; ServiceError in a process that was forked from one that used it: there it would hang."""
    global _user
    if _user is None:
        _user = os.getpid()
    if _user != os.getpid():
        raise service.ServiceError(
            "this process was forked from one that had read s3:// or https:// paths, which cannot go on in it",
            'start processes with the method "spawn" or "forkserver", or by subprocess',
        )
    import obstore

    return obstore


def s3_store(bucket: str) -> "S3Store":
    """A bucket. Credentials and region are looked for where AWS's own tools have them, but for profile files."""
    with explained():
        obstore()
        return _s3_store(bucket, settings())


def http_store(host: str) -> "HTTPStore":
    """A web server."""
    with explained():
        obstore()
        return _http_store(host, settings())


@functools.lru_cache(maxsize=64)
def _s3_store(bucket: str, settings: Settings) -> "S3Store":
    from obstore.store import S3Store

    endpoint = settings.endpoint("s3")
    options = _options(settings, endpoint)
    # Single deletions are repeated where the answer is lost, and every service knows them.
    config: S3Config = {"disable_bulk_delete": True}
    if endpoint:
        config["endpoint"] = endpoint
    return S3Store(bucket, config=config, client_options=options, retry_config=_retries(settings))


@functools.lru_cache(maxsize=64)
def _http_store(host: str, settings: Settings) -> "HTTPStore":
    from obstore.store import HTTPStore

    endpoint = settings.endpoint("https")
    options = _options(settings, endpoint)
    if endpoint:
        options["default_headers"] = {"host": host}
    return HTTPStore(endpoint or f"https://{host}", client_options=options, retry_config=_retries(settings))


def _options(settings: Settings, endpoint: str | None) -> Any:
    # obstore's limit for a whole answer, 30 s, would end the reading of large objects: only standing still counts.
    limits = {"timeout": "1d", "connect_timeout": f"{CONNECT_TIMEOUT}s", "read_timeout": _seconds(settings.timeout)}
    # Any options given here make obstore forget that variable.
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    return {**limits, "allow_http": allowed or (endpoint or "").startswith("http:")}


def _retries(settings: Settings) -> Any:
    # Less time than all the tries may take would cut them short.
    allowed = (settings.retries + 1) * (settings.timeout + CONNECT_TIMEOUT) + 60
    return {"max_retries": settings.retries, "retry_timeout": timedelta(seconds=allowed)}


def _seconds(value: float) -> str:
    return f"{round(value * 1000)}ms"


def open_stream(path: str, store: "S3Store | HTTPStore", key: str) -> io.RawIOBase:
    """An unbuffered, seekable stream of one version of an object; `path` is how messages name it."""
    return _Stream(path, store, key)


class _Stream(io.RawIOBase):
    def __init__(self, path: str, store: "S3Store | HTTPStore", key: str) -> None:
        self._path = path
        self._store = store
        self._key = key
        self._offset = self._asked_at = 0
        self._rest = memoryview(b"")
        self._blocks: BytesStream | None = None
        self._identity: tuple[Any, ...] | None = None
        self._size = 0
        self._request()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        if not self._rest and self._offset < self._size:
            self._rest = memoryview(self._next_block())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._offset += count
        return count

    def readall(self) -> bytes:
        blocks = []
        while self._rest or self._offset < self._size:
            blocks.append(self._rest or self._next_block())
            self._offset += len(blocks[-1])
            self._rest = memoryview(b"")
        return b"".join(blocks)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        if start + offset != self._offset:
            self._offset = start + offset
            self._rest = memoryview(b"")
            self._blocks = None
        return self._offset

    def close(self) -> None:
        self._blocks = None
        super().close()

    def _next_block(self) -> bytes:
        """The bytes that follow; asked for once more where the body broke off and all of obstore's own tries failed.

        That is after bytes had come only: what has brought nothing at all has been tried for long enough.
        """
        if self._blocks is None:
            self._request()
        try:
            return self._block()
        except service.ServiceError as err:
            if self._offset == self._asked_at:
                raise
            message = "%s: %s at byte %d; reading on from there"
            logging.getLogger(__name__).warning(message, self._path, err, self._offset)
        self._request()
        return self._block()

    def _block(self) -> bytes:
        assert self._blocks is not None
        with explained():
            obstore()
            block = next(self._blocks, b"")
        if not block:
            raise service.UnansweredError(service.BROKEN)
        return block

    def _request(self) -> None:
        """Asks for everything from here on; ServiceError if it is another version than before."""
        self._asked_at = self._offset
        with explained():
            options = {"range": {"offset": self._offset}} if self._offset else {}
            answer = obstore().get(self._store, self._key, options=options)
        found = (answer.meta["e_tag"] or answer.meta["last_modified"], answer.meta["size"])
        if self._identity not in (None, found):
            raise service.replaced()
        self._identity = found
        self._size = answer.meta["size"]
        self._blocks = answer.stream(_BLOCK)


@contextmanager
def explained() -> Iterator[None]:
    """Turns what obstore raises into words.

    Its own texts end with the service's answer, which may repeat signed headers: they are not chained.
    """
    try:
        yield
    except FileNotFoundError:
        raise service.absent() from None
    except Exception as err:
        if not is_own(err):
            raise
        raise meaning(err) from None


def is_own(err: Exception) -> bool:
    """Whether an error is obstore's; for a name that no object can have it is a ValueError."""
    return type(err).__module__.startswith("obstore") or (type(err) is ValueError and "parse path" in str(err))


def meaning(err: Exception) -> Exception:
    """The same in words, without what the service sent."""
    text = str(err)
    if _ROLE.search(text):
        return service.ServiceError("no credentials were found", NO_CREDENTIALS)
    if "InvalidCertificate" in text:
        return service.untrusted()
    status, code, kind = _STATUS.search(text), _CODE.search(text), _KIND.search(text)
    if status:
        return service.answered(int(status[1]), code[1] if code else "")
    if kind:
        return service.UnansweredError(_WORDS[kind[1]])
    return service.ServiceError(text.partition("\n")[0], "check the path and the credentials (docs/storage.md)")
