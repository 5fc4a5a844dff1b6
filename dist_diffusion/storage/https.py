"""https:// paths: files of a web server, which can be read by name and nothing else."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from dist_diffusion.storage import service
from dist_diffusion.storage.objects import explained, http_store, obstore, open_stream

_REQUESTS_AT_ONCE = 16


def exists(path: str) -> bool:
    """Whether there is a file."""
    with suppress(FileNotFoundError):
        size(path)
        return True
    return False


def is_dir(path: str) -> bool:
    """Never: a web server has no folders that could be looked into."""
    return False


def list_names(folder: str) -> NoReturn:
    """ServiceError: there is no way to ask for the names."""
    raise service.ServiceError("https:// cannot list a folder", "name the file itself, or use another kind of path")


def tree(folder: str) -> NoReturn:
    """ServiceError: there is no way to ask for the names."""
    list_names(folder)


def size(path: str) -> int:
    """Bytes of a file."""
    host, key = _split(path)
    with explained():
        return obstore().head(http_store(host), key)["size"]


def sizes(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the named files that are there; one request each."""
    wanted = list(names)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        found = threads.map(lambda name: _size_or_none(f"{folder.rstrip('/')}/{name}"), wanted)
        return {name: size for name, size in zip(wanted, found, strict=True) if size is not None}


def open_raw(path: str) -> io.RawIOBase:
    """An unbuffered, seekable stream."""
    host, key = _split(path)
    return open_stream(path, http_store(host), key)


def _size_or_none(path: str) -> int | None:
    with suppress(FileNotFoundError):
        return size(path)
    return None


def _split(path: str) -> tuple[str, str]:
    """The server, and the name there without its percent signs, which obstore puts in."""
    parts = urlsplit(path)
    return parts.netloc, unquote(parts.path).strip("/")
