"""Files of this machine, with the functions that every kind of storage has."""

import io
import os
from collections.abc import Iterable
from contextlib import suppress


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    return os.path.exists(path)


def is_dir(path: str) -> bool:
    """Whether there is a folder."""
    return os.path.isdir(path)


def list_names(folder: str) -> list[str]:
    """Names in a folder; none where it is absent."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def size(path: str) -> int:
    """Bytes of a file."""
    return os.stat(path).st_size


def sizes(folder: str, names: Iterable[str]) -> dict[str, int]:
    """Bytes of the named files that are there."""
    paths = {name: os.path.join(folder, name) for name in names}
    return {name: os.stat(path).st_size for name, path in paths.items() if os.path.isfile(path)}


def tree(folder: str) -> dict[str, int]:
    """Bytes of all files below, by their path from there."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            # It may have gone since it was listed.
            with suppress(FileNotFoundError):
                found[os.path.relpath(path, folder)] = size(path)
    return found


def open_raw(path: str) -> io.RawIOBase:
    """An unbuffered stream."""
    return io.FileIO(path)
