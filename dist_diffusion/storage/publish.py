"""Publishing of whole files: a reader sees the old content or the new, never a part.

Local files are written beside their destination, synced and renamed; a remote object is written once.
"""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files

COPY_BYTES = 1 << 24


@contextmanager
def atomic_file(path: str) -> Iterator[str]:
    """A local path to write to; published as `path` when the block ends well, removed when it raises.

    Its name ends with the destination's, so that writers which look at the extension are content.
    Folders above a local destination are made.
    """
    if files.is_remote(path):
        with _uploaded(path) as temporary:
            yield temporary
        return
    with _beside(path) as temporary:
        yield temporary
        with files.failures("write", path):
            files.share(temporary)
            os.replace(_synced(temporary), path)
            sync_folder(os.path.dirname(path))


def write_bytes(path: str, data: bytes) -> None:
    """Replaces the whole file atomically."""
    with atomic_file(path) as temporary, files.failures("write", path):
        _write(temporary, data)


def copy(source: str, path: str) -> str:
    """The same for the bytes of another path, without holding them in memory; returns their hex sha256. A second name
    of the same file (see `link`) stays one.

    StorageError where the copy turns out to be damaged: the destination is as it was.
    """
    if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
        return files.sha256(path)
    with atomic_file(path) as temporary:
        with (
            files.open_read(source) as stream,
            files.failures("copy", source),
            open(temporary, "wb") as copied,
        ):
            shutil.copyfileobj(stream, copied, COPY_BYTES)
        digest = files.sha256(source)
        if files.sha256(temporary) != digest:
            raise StorageError(f"the copy of {source} for {path} is damaged: look at that disk, then try again")
    return digest


def upload(source: str, path: str) -> None:
    """Makes an object of a local file that nobody changes meanwhile, without a copy of it on the way."""
    store = files.object_store(path)
    with files.failures(f"copy {source} to", path):
        store.upload(source, path)


def download(source: str, path: str) -> str:
    """Makes a local file of an object, which is read once; returns the hex sha256 of what came."""
    digest = hashlib.sha256()
    with (
        atomic_file(path) as temporary,
        files.open_read(source) as stream,
        files.failures("write", path),
        open(temporary, "xb") as copied,
    ):
        while block := stream.read(COPY_BYTES):
            digest.update(block)
            copied.write(block)
    return digest.hexdigest()


def link(source: str, path: str) -> None:
    """Gives a file of ours a second name, where one file system holds both and has such names; else does nothing."""
    if files.is_remote(path):
        return
    with _beside(path) as temporary, suppress(OSError):
        os.link(source, temporary)
        os.replace(temporary, path)


def write_json(path: str, obj: Any) -> None:
    """Replaces the whole file atomically by indented JSON."""
    write_bytes(path, (json.dumps(obj, indent=2) + "\n").encode())


def remove(path: str) -> None:
    """Removes a file, if it is there."""
    with files.failures("remove", path), suppress(FileNotFoundError):
        if files.is_remote(path):
            files.object_store(path).remove(path)
        else:
            os.remove(path)


def remove_folder(path: str) -> None:
    """Removes a local folder with all that is in it, if it is there."""
    with files.failures("remove", path), suppress(FileNotFoundError):
        shutil.rmtree(path)


def create_exclusive(path: str, data: bytes) -> bool:
    """Publishes a local file if there is none yet; False where there is one. Never seen empty or in part."""
    if files.is_remote(path):
        raise StorageError(f"cannot create {path} exclusively: object stores do not offer it; use a local path")
    with _beside(path) as temporary, files.failures("write", path):
        _write(temporary, data)
        try:
            os.link(_synced(temporary), path)
        except FileExistsError:
            # A network filesystem may repeat a request whose answer got lost: the file found is then ours.
            return os.stat(temporary).st_nlink == 2
        sync_folder(os.path.dirname(path))
        return True


def sync_folder(folder: str) -> None:
    """Makes the names in a local folder durable."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _uploaded(path: str) -> Iterator[str]:
    """A local path whose file becomes the object, when the block ends well."""
    store = files.object_store(path)
    with tempfile.TemporaryDirectory() as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        yield temporary
        with files.failures("write", path):
            store.upload(temporary, path)


@contextmanager
def _beside(path: str) -> Iterator[str]:
    """An unused temporary path in the destination's folder, which is made; nothing is left there."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f"{files.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{name}")
    with files.failures("write", path):
        os.makedirs(folder or ".", exist_ok=True)
    try:
        yield temporary
    finally:
        # A failure to tidy up must not hide why the write failed.
        with suppress(OSError):
            os.remove(temporary)


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)


def _synced(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path
