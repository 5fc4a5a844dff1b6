"""Reading of local paths, gs:// and az:// behind one set of functions.

Every failure is a StorageError that names the path and what to do. blobfile is imported on the first remote path only.
"""

import errno
import functools
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from dist_diffusion.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from blobfile._context import Context

REMOTE_SCHEMES = ("gs", "az")
_UMASK = os.umask(0)
os.umask(_UMASK)
TEMPORARY_PREFIX = ".tmp-"
"""Names of files that are not published yet; `list_names` does not show them."""

_CHUNK = 1 << 20
_RETRY_LIMIT = 10
_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOSPC: "free space on that filesystem",
    errno.EDQUOT: "free space or raise the quota",
    errno.ESTALE: "check the network filesystem's mount",
}


def is_remote(path: str) -> bool:
    """Whether a path is an object store's; StorageError for a scheme that is not known."""
    scheme, separator, _ = path.partition("://")
    if not separator:
        return False
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        raise StorageError(f"{path}: {scheme}:// is not a known scheme; use a local path or one of {known}")
    return True


def share(path: str) -> None:
    """Gives a local file the permissions that a plainly written one has; some writers make theirs private."""
    os.chmod(path, 0o666 & ~_UMASK)


@functools.lru_cache(maxsize=2)
def remote(*, writing: bool) -> "Context":
    """The private blobfile context for reading or for writing: bounded retries, no key written to disk."""
    import blobfile

    return blobfile.create_context(
        log_callback=logging.getLogger(__name__).warning,
        retry_limit=_RETRY_LIMIT,
        save_access_token_to_disk=False,
        use_streaming_read=True,
        # A lost commit response would otherwise be reported as a version mismatch though the data was written.
        use_blind_writes=writing,
    )


@contextmanager
def failures(action: str, path: str) -> Iterator[None]:
    """Turns whatever goes wrong with a path into a StorageError: "cannot {action} {path}: why; what to do"."""
    try:
        yield
    except OSError as err:
        advice = _ADVICE.get(err.errno or 0, "check the path and the filesystem")
        raise StorageError(f"cannot {action} {path}: {err.strerror or err}; {advice}") from err
    except Exception as err:
        if not type(err).__module__.startswith(("blobfile", "urllib3", "safetensors")):
            raise
        raise StorageError(f"cannot {action} {path}: {err}; check the path, the credentials and the network") from err


def join(path: str, *names: str) -> str:
    """The path of an entry below a folder."""
    return "/".join((path.rstrip("/"), *names)) if is_remote(path) else os.path.join(path, *names)


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    if not is_remote(path):
        return os.path.exists(path)
    with failures("look up", path):
        return remote(writing=False).exists(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder (of an object store: a prefix with objects)."""
    if not is_remote(path):
        return os.path.isdir(path)
    with failures("look up", path):
        return remote(writing=False).isdir(path)


def list_names(folder: str) -> list[str]:
    """Sorted names in a folder without unpublished temporary files; empty where the folder is absent."""
    with failures("list", folder):
        try:
            names = remote(writing=False).listdir(folder) if is_remote(folder) else os.listdir(folder)
            return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))
        except FileNotFoundError:
            return []


def size(path: str) -> int:
    """Bytes of a file."""
    with failures("read", path):
        return remote(writing=False).stat(path).size if is_remote(path) else os.stat(path).st_size


def open_read(path: str) -> BinaryIO:
    """A buffered, seekable stream; failures while reading name the path too."""
    with failures("read", path):
        stream = remote(writing=False).BlobFile(path, "rb") if is_remote(path) else io.FileIO(path)
    return cast(BinaryIO, io.BufferedReader(_Reader(path, cast(BinaryIO, stream)), _CHUNK))


def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as stream:
        return stream.read()


def read_json(path: str) -> Any:
    """The parsed file; StorageError where it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise StorageError(f"{path} is not valid JSON ({err}); restore it or remove it") from err


def sha256(path: str) -> str:
    """Hex digest of the content, read as a stream."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open_read(path) as stream:
        while count := cast(io.BufferedReader, stream).readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class _Reader(io.RawIOBase):
    """An opened stream whose failures name its path."""

    def __init__(self, path: str, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with failures("read", self._path):
            return cast(io.BufferedReader, self._stream).readinto(buffer)

    def readall(self) -> bytes:
        with failures("read", self._path):
            return self._stream.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with failures("read", self._path):
            return self._stream.seek(offset, whence)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
