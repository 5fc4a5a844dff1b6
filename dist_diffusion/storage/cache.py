"""A local cache of whole files that never change and whose sha256 is known, shared by the processes of a host.

A file is found by its sha256, so one that lies under two URLs is fetched once. It is checked while it is fetched; later
it is trusted by name and size. Where it turns out damaged after all (a crc32 of its samples tells), `discard` it.

How processes agree, by `flock`s, which a killed process loses by itself:
- `.tmp-SHA256` is a file being fetched, at its full length, so that it counts; its fetcher holds it exclusively.
- `SHA256-NAME` is a published file; whoever has it open shares it, and nobody evicts it.
- Room is reserved, and files are published and removed, under one lock of the folder.
A lock counts only where the path still leads to the locked file: another process may have renamed or removed it.
"""

import errno
import fcntl
import functools
import hashlib
import io
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

from dist_diffusion.errors import ConfigError, StorageError
from dist_diffusion.storage import files

FOLDER_VARIABLE = "DIST_DIFFUSION_CACHE"
LIMIT_VARIABLE = "DIST_DIFFUSION_CACHE_GIB"
GIB = 1 << 30

_LOCK = ".dist_diffusion-cache.lock"
# Whatever else lies in the folder is its user's own.
_OURS = re.compile(rf"{re.escape(files.TEMPORARY_PREFIX)}[0-9a-f]{{64}}|[0-9a-f]{{64}}-.+")
_MAX_NAME = 128
_CHUNK = 1 << 20
_ATTEMPTS = 2
_POLL_S = 0.05
# Others may be about to let go: a rank goes on to its next shard a little earlier than another.
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Held:
    """A file of the cache, open for reading. It stays in the cache until `close`."""

    path: str
    descriptor: int

    def close(self) -> None:
        """Lets the file be evicted."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class _Entry:
    """One of our files as it was listed; `fetching` where it is not published."""

    path: str
    bytes: int
    used_ns: int
    fetching: bool


class Cache:
    """A folder on a disk of this host, made where it is absent, that holds at most `limit` bytes.

    Where the limit is None it is half of what would be free there without the cache.
    """

    def __init__(self, folder: str, limit: int | None) -> None:
        self.folder = folder
        with files.failures("use the cache folder", folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self.limit = self._half_of_free() if limit is None else limit

    def open(self, path: str, sha256: str, size: int | None = None) -> Held:
        """The content of `path`, fetched unless it is here; waits where another process or thread is fetching it.

        `size` is in bytes; the source is asked where it is None. StorageError where the source cannot be read or is not
        what `sha256` says, and where the files in use leave no room.
        """
        with self._failures():
            while True:
                held = self._take(sha256, size) or self._fetch(path, sha256, size)
                if held:
                    return held

    def fetch(self, path: str, sha256: str, size: int | None = None) -> None:
        """Fetches a file ahead of its `open`; nothing holds it."""
        self.open(path, sha256, size).close()

    def discard(self, path: str, sha256: str) -> None:
        """Removes the copy of `path`, which turned out damaged: the next `open` fetches it anew. Says so."""
        with self._failures(), self._locked():
            copy = self._find(sha256)
            if copy:
                os.remove(copy)
                logging.getLogger(__name__).warning(f"the copy of {path} in the cache was damaged: removed {copy}")

    def _take(self, sha256: str, size: int | None) -> Held | None:
        """The file, held and now the most recently used, if it is here."""
        path = self._find(sha256)
        if not path:
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if _is_at(descriptor, path):
            if size in (None, os.fstat(descriptor).st_size):
                os.utime(descriptor)
                return Held(path, descriptor)
            # A repaired file system may have cut it.
            with suppress(FileNotFoundError):
                os.remove(path)
        os.close(descriptor)
        return None

    def _fetch(self, path: str, sha256: str, size: int | None) -> Held | None:
        """The file, fetched and held. None where another process has fetched it, or tried to: look again."""
        partial = os.path.join(self.folder, f"{files.TEMPORARY_PREFIX}{sha256}")
        with _opened(partial, os.O_RDWR | os.O_CREAT) as descriptor:
            # Not waited for in the kernel: once published, the same file is shared, and that for as long as it is read.
            while not _lock_if_free(descriptor):
                if not _is_at(descriptor, partial):
                    return None
                time.sleep(_POLL_S)
            if not _is_at(descriptor, partial):
                return None
            try:
                if self._find(sha256):
                    return None
                size = files.size(path) if size is None else size
                # A killed process may have left its part.
                os.ftruncate(descriptor, 0)
                end = time.monotonic() + _PATIENCE_S
                while not self._reserve(descriptor, path, size, last_try=time.monotonic() > end):
                    time.sleep(_POLL_S)
                _download(path, descriptor, sha256, size)
                # It is trusted by its name from now on, after a crash of the host too.
                os.fsync(descriptor)
                return self._publish(descriptor, partial, path, sha256)
            finally:
                if _is_at(descriptor, partial):
                    os.remove(partial)

    def _reserve(self, descriptor: int, path: str, size: int, last_try: bool) -> bool:
        """Makes room by evicting and takes it; False where there may be some later. What others fetch is waited for."""
        if size > self.limit:
            raise self._no_room(path, size, 0)
        with self._locked():
            entries = self._entries()
            used = sum(entry.bytes for entry in entries)
            fetching = False
            for entry in entries:
                if used + size <= self.limit:
                    break
                if _evict(entry.path):
                    used -= entry.bytes
                else:
                    # An empty one waits for room itself.
                    fetching |= entry.fetching and entry.bytes > 0
            if used + size <= self.limit:
                os.ftruncate(descriptor, size)
                return True
        if last_try and not fetching:
            raise self._no_room(path, size, used)
        return False

    def _publish(self, descriptor: int, partial: str, path: str, sha256: str) -> Held | None:
        name = re.sub(r"[^\w.-]", "_", path.rpartition("/")[2], flags=re.ASCII)[-_MAX_NAME:]
        with self._locked():
            os.replace(partial, os.path.join(self.folder, f"{sha256}-{name}"))
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return self._take(sha256, None)

    def _half_of_free(self) -> int:
        return (shutil.disk_usage(self.folder).free + sum(entry.bytes for entry in self._entries())) // 2

    def _find(self, sha256: str) -> str | None:
        """The path of the published file, under whatever name it was fetched."""
        found = [name for name in os.listdir(self.folder) if name.startswith(f"{sha256}-")]
        return os.path.join(self.folder, found[0]) if found else None

    def _entries(self) -> list[_Entry]:
        """Our files as they are evicted: what killed processes left first, then the least recently used."""
        entries = []
        with os.scandir(self.folder) as found:
            for entry in found:
                if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        fetching = entry.name.startswith(files.TEMPORARY_PREFIX)
                        entries.append(_Entry(entry.path, stat.st_size, stat.st_mtime_ns, fetching))
        return sorted(entries, key=lambda entry: (not entry.fetching, entry.used_ns))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _opened(os.path.join(self.folder, _LOCK), os.O_RDWR | os.O_CREAT) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turns what goes wrong with the folder into a StorageError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"the disk of the cache folder {self.folder} is full ({error.strerror}): free space there, set "
                    f"{LIMIT_VARIABLE} lower than {_gib(self.limit)}, or {FOLDER_VARIABLE} to a folder on another disk"
                ) from error
            with files.failures("use the cache folder", self.folder):
                raise

    def _no_room(self, path: str, size: int, used: int) -> StorageError:
        return StorageError(
            f"no room for {path} in the cache folder {self.folder}: the limit is {_gib(self.limit)}, files in use "
            f"take {_gib(used)}, with this one {_gib(used + size)} would be needed; set {LIMIT_VARIABLE} higher, or "
            f"{FOLDER_VARIABLE} to a folder on a larger disk"
        )


@functools.cache
def from_environment() -> Cache:
    """The cache of this process: DIST_DIFFUSION_CACHE is its folder, DIST_DIFFUSION_CACHE_GIB its limit.

    By default this user's own in the folder of temporary files. ConfigError where one of the variables is wrong.
    """
    limit = _parse_limit(os.environ.get(LIMIT_VARIABLE, ""))
    folder = os.environ.get(FOLDER_VARIABLE, "")
    if "://" in folder:
        raise ConfigError(f"{FOLDER_VARIABLE}={folder} must be a folder on a disk of this host")
    if folder:
        return Cache(folder, limit)
    cache = Cache(os.path.join(tempfile.gettempdir(), f"dist_diffusion-cache-{os.getuid()}"), limit)
    # Everybody may write to the folder above: what another user put there is not to be trusted.
    if os.lstat(cache.folder).st_uid != os.getuid():
        raise StorageError(f"{cache.folder} belongs to another user: set {FOLDER_VARIABLE} to a folder of your own")
    return cache


def _parse_limit(given: str) -> int | None:
    try:
        gib = float(given or "nan")
    except ValueError:
        gib = 0.0
    if given and not 0 < gib < math.inf:
        raise ConfigError(f"{LIMIT_VARIABLE}={given!r} must be a number of GiB above 0, such as 200 or 0.5")
    return int(gib * GIB) if given else None


def _download(path: str, descriptor: int, sha256: str, size: int) -> None:
    """Writes the source's content; StorageError where it is twice not what `sha256` and `size` say."""
    for _ in range(_ATTEMPTS):
        found = _copy(path, descriptor, size)
        if found == (sha256, size):
            return
        logging.getLogger(__name__).warning(f"{path} arrived damaged: sha256 {found[0]} of {found[1]} bytes")
    raise StorageError(
        f"{path} is damaged: sha256 {found[0]} of {found[1]} bytes, but the manifest says {sha256} of {size} bytes "
        f"(it was read {_ATTEMPTS} times); restore that file, or its manifest if the file is right"
    )


def _copy(path: str, descriptor: int, size: int) -> tuple[str, int]:
    """Writes the source's bytes, a few more than `size` at most; returns the sha256 and number of what was read."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    written = 0
    with files.open_read(path) as source, open(descriptor, "r+b", closefd=False) as partial:
        partial.truncate(size)
        partial.seek(0)
        while written <= size and (count := cast(io.BufferedReader, source).readinto(buffer)):
            digest.update(buffer[:count])
            written += partial.write(buffer[:count])
    return digest.hexdigest(), written


def _evict(path: str) -> bool:
    """Removes a file that no process has locked; False where one has."""
    try:
        with _opened(path, os.O_RDWR) as descriptor:
            if not _lock_if_free(descriptor):
                return False
            if _is_at(descriptor, path):
                os.remove(path)
    except FileNotFoundError:
        pass
    return True


def _lock_if_free(descriptor: int) -> bool:
    """Locks a file exclusively; False where another has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _gib(count: int) -> str:
    return f"{count / GIB:.3f} GiB"
