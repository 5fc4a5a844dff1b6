"""Reading of local paths, gs://, az://, s3:// and https:// behind one set of functions.

Every failure is a StorageError that names the path and what to do. The libraries that speak to services are imported on
the first path of theirs only.
"""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import blobs, https, local, s3
from dist_diffusion.storage.environment import SCHEMES
from dist_diffusion.storage.service import ServiceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class _Store(Protocol):
    """What every kind of storage can do, given whole paths."""

    def exists(self, path: str) -> bool: ...
    def is_dir(self, path: str) -> bool: ...
    def list_names(self, folder: str) -> list[str]: ...
    def size(self, path: str) -> int: ...
    def sizes(self, folder: str, names: Iterable[str]) -> dict[str, int]: ...
    def tree(self, folder: str) -> dict[str, int]: ...
    def open_raw(self, path: str) -> io.RawIOBase: ...


class _ObjectStore(_Store, Protocol):
    """One on another machine that can be written; `upload` makes a local file appear there, whole."""

    def upload(self, local: str, path: str) -> None: ...
    def remove(self, path: str) -> None: ...


_OBJECT_STORES: dict[str, _ObjectStore] = {"gs": blobs, "az": blobs, "s3": s3}
_REMOTE: dict[str, _Store] = {**_OBJECT_STORES, "https": https}
_UMASK = os.umask(0)
os.umask(_UMASK)
TEMPORARY_PREFIX = ".tmp-"
"""Names of files that are not published yet; `list_names` does not show them."""

_CHUNK = 1 << 20
_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EACCES: "check the permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOSPC: "free space on that filesystem",
    errno.EDQUOT: "free space or raise the quota",
    errno.ESTALE: "check the network filesystem's mount",
}


def is_remote(path: str) -> bool:
    """Whether a path is an object store's or a web server's; StorageError for one that cannot be used."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return False
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise StorageError(f"{path}: {scheme}:// is not a known scheme; use a local path or one of {known}")
    host = rest.partition("/")[0]
    if scheme == "https" and ("?" in rest or "@" in host):
        address = f"https://{host.rpartition('@')[2]}/..."
        secret = "an address with a password or a query is not taken, since paths are logged"
        raise StorageError(f"{address}: {secret}; use one without, or copy the file")
    return True


def object_store(path: str) -> _ObjectStore:
    """Where a remote path can be written; StorageError for https://."""
    scheme = path.partition("://")[0]
    if scheme not in _OBJECT_STORES:
        kinds = ", ".join(f"{name}://" for name in _OBJECT_STORES)
        raise StorageError(f"cannot change {path}: {scheme}:// is only read; use a local path or one of {kinds}")
    return _OBJECT_STORES[scheme]


def share(path: str) -> None:
    """Gives a local file the permissions that a plainly written one has; some writers make theirs private."""
    os.chmod(path, 0o666 & ~_UMASK)


@contextmanager
def failures(action: str, path: str) -> Iterator[None]:
    """Turns whatever goes wrong with a path into a StorageError: "cannot {action} {path}: why; what to do"."""
    try:
        yield
    except OSError as err:
        advice = _ADVICE.get(err.errno or 0, "check the path and the filesystem")
        raise StorageError(f"cannot {action} {path}: {err.strerror or err}; {advice}") from err
    except ServiceError as err:
        raise StorageError(f"cannot {action} {path}: {err}; {err.advice}") from err
    except Exception as err:
        if not type(err).__module__.startswith("safetensors"):
            raise
        raise StorageError(f"cannot {action} {path}: {err}; check the path and the filesystem") from err


def join(path: str, *names: str) -> str:
    """The path of an entry below a folder."""
    return "/".join((path.rstrip("/"), *names)) if is_remote(path) else os.path.join(path, *names)


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    with failures("look up", path):
        return _store(path).exists(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder (of an object store: a prefix with objects; of a web server: never)."""
    with failures("look up", path):
        return _store(path).is_dir(path)


def list_names(folder: str) -> list[str]:
    """Sorted names in a folder without unpublished temporary files; empty where the folder is absent."""
    with failures("list", folder):
        return sorted(name for name in _store(folder).list_names(folder) if not name.startswith(TEMPORARY_PREFIX))


def size(path: str) -> int:
    """Bytes of a file."""
    with failures("read", path):
        return _store(path).size(path)


def sizes(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the named files in a folder; names that are not there are left out."""
    with failures("list", folder):
        return _store(folder).sizes(folder, names)


def tree(folder: str) -> dict[str, int]:
    """Bytes of all files below a folder, by their path from there with slashes; empty where the folder is absent.

    Without unpublished temporary files, and without names that would lead out of the folder.
    """
    with failures("list", folder):
        found = _store(folder).tree(folder)
    return {path: found[path] for path in sorted(found) if all(_is_plain(part) for part in path.split("/"))}


def open_read(path: str) -> BinaryIO:
    """A buffered, seekable stream; failures while reading name the path too."""
    with failures("read", path):
        stream = _store(path).open_raw(path)
    return cast(BinaryIO, io.BufferedReader(_Reader(path, stream), _CHUNK))


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


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not part.startswith(TEMPORARY_PREFIX)


def _store(path: str) -> _Store:
    return _REMOTE[path.partition("://")[0]] if is_remote(path) else local


class _Reader(io.RawIOBase):
    """An opened stream whose failures name its path."""

    def __init__(self, path: str, stream: io.RawIOBase) -> None:
        self._path = path
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        with failures("read", self._path):
            return cast(io.FileIO, self._stream).readinto(buffer) or 0

    def readall(self) -> bytes:
        with failures("read", self._path):
            return self._stream.readall()

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        with failures("read", self._path):
            return self._stream.seek(offset, whence)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
