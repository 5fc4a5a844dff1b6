"""gs:// and az:// paths by blobfile, which is imported on the first one."""

import functools
import io
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from dist_diffusion.storage import service
from dist_diffusion.storage.environment import CONNECT_TIMEOUT, Settings, settings

if TYPE_CHECKING:
    from blobfile._context import Context

_PIECE = 1 << 20


def context(*, writing: bool = False) -> "Context":
    """The private context for reading or for writing: bounded tries, no key written to disk."""
    return _context(writing, settings())


@functools.lru_cache(maxsize=4)
def _context(writing: bool, settings: Settings) -> "Context":
    import blobfile

    from dist_diffusion.storage.pool import pool

    return blobfile.create_context(
        log_callback=_log,
        get_http_pool=pool,
        retry_limit=settings.retries,
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=settings.timeout,
        save_access_token_to_disk=False,
        use_streaming_read=True,
        # A lost commit response would otherwise be reported as a version mismatch though the data was written.
        use_blind_writes=writing,
    )


def exists(path: str) -> bool:
    """Whether there is an object, or a folder."""
    with _explained():
        return context().exists(path) or _absent_in_its_bucket(path)


def is_dir(path: str) -> bool:
    """Whether objects lie below; ServiceError where the bucket is missing."""
    with _explained():
        return context().isdir(path) or _absent_in_its_bucket(path)


def list_names(folder: str) -> list[str]:
    """Names directly below; none where there is no such folder."""
    return list(_entries(folder))


def size(path: str) -> int:
    """Bytes of an object."""
    with _explained():
        return context().stat(path).size


def sizes(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the named objects that are there, from one listing."""
    found = _entries(folder)
    return {name: size for name in names if (size := found.get(name)) is not None}


def tree(folder: str) -> dict[str, int]:
    """Bytes of all objects below, by their path from there; one listing, however deep they lie."""
    below = folder.rstrip("/") + "/"
    with _explained():
        try:
            found = list(context().scanglob(f"{below}**"))
        except FileNotFoundError:
            found = []
        if not found:
            _absent_in_its_bucket(folder)
    return {entry.path.removeprefix(below): entry.stat.size for entry in found if entry.stat and entry.is_file}


def open_raw(path: str) -> io.RawIOBase:
    """An unbuffered, seekable stream."""
    with _explained():
        found = context().stat(path)
        # Azure then refuses to go on reading an object that was replaced; for Google, blobfile has no such check.
        version = found.version if path.startswith("az://") else None
        stream = context().BlobFile(path, "rb", file_size=found.size, version=version)
    return _Stream(cast(io.BufferedReader, stream).detach(), found.size)


def upload(local: str, path: str) -> None:
    """Makes an object of a local file; it is not seen before it is whole."""
    import blobfile

    with _explained():
        for _ in range(settings().retries):
            try:
                return _write(local, path)
            except blobfile.RestartableStreamingWriteFailure as err:
                # Google has forgotten an upload that was under way.
                _log(str(err))
        _write(local, path)


def remove(path: str) -> None:
    """Removes an object."""
    with _explained():
        context(writing=True).remove(path)


def _write(local: str, path: str) -> None:
    stream = context(writing=True).BlobFile(path, "wb", streaming=True, partial_writes_on_exc=False)
    try:
        with open(local, "rb") as source:
            shutil.copyfileobj(source, stream, _PIECE)
        stream.close()
    except BaseException:
        # A writer whose last request failed would send everything again when it is collected as garbage, and what
        # was reported as failed would appear after all, over newer content or, with Azure, twice over.
        stream.had_exception = True
        stream.close()
        raise


def _entries(folder: str) -> dict[str, int | None]:
    """Bytes of the objects directly below a folder, by name; None for folders."""
    with _explained():
        try:
            found = list(context().scandir(folder))
        except FileNotFoundError:
            _absent_in_its_bucket(folder)
            return {}
    return {entry.name: entry.stat.size if entry.stat else None for entry in found}


def _absent_in_its_bucket(path: str) -> bool:
    """False for something that was not found; ServiceError if its bucket is not there either."""
    import blobfile

    parts = path.split("/")
    bucket = "/".join(parts[: 4 if path.startswith("az://") else 3]) + "/"
    try:
        if context().isdir(bucket):
            return False
    except blobfile.RequestFailure as err:
        # Many accounts may use the objects of a bucket, yet not look at the bucket itself.
        if err.response_status != 403:
            raise
        return False
    raise service.no_bucket(bucket)


class _Stream(io.RawIOBase):
    """blobfile's stream, which takes an object that became shorter for its end."""

    def __init__(self, stream: io.RawIOBase, size: int) -> None:
        self._stream = stream
        self._size = size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        with _explained():
            # What has come of a piece when the answer breaks off is lost: pieces are small.
            count = self._stream.readinto(memoryview(buffer)[:_PIECE]) or 0
        if not count and len(buffer) and self._stream.tell() < self._size:
            raise service.replaced()
        return count

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self.read(_PIECE), b""))

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what blobfile raises into words."""
    try:
        yield
    except FileNotFoundError:
        raise service.absent() from None
    except Exception as err:
        if not type(err).__module__.startswith(("blobfile", "urllib3")):
            raise
        raise _meaning(err) from err


def _meaning(err: Exception) -> Exception:
    import blobfile

    if isinstance(err, blobfile.ConcurrentWriteFailure):
        return service.ServiceError("another process wrote it at the same time", "let one process write a path")
    if isinstance(err, blobfile.RequestFailure) and err.response_status:
        headers = err.error_headers or ""
        code = err.error or headers.partition("x-ms-error-code: ")[2].partition(",")[0]
        return service.answered(err.response_status, code if code.isalnum() else "")
    text = str(getattr(err, "message", err))
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return service.untrusted()
    # What went wrong inside a stream arrives without a type of its own.
    if isinstance(err, blobfile.RequestFailure) or "while reading file at" in text:
        lost = service.NO_CONNECTION if "establish" in text or "resolve" in text else service.BROKEN
        return service.UnansweredError(service.NO_ANSWER if "timed out" in text else lost)
    return service.ServiceError(text.partition("\n")[0], "check the path and the credentials (docs/storage.md)")


def _log(message: str) -> None:
    """What failed and is tried again, without the answer's headers."""
    logging.getLogger(__name__).warning("%s; trying again", message.partition(", error=")[0])
