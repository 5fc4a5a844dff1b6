"""Committed folders: `parent/name.attempt` exists once its marker is written, as the last file of all.

Knows nothing of what is in them. Only the process that owns `parent` may mark, prune or sweep. Those of an object store
can be scanned and verified; `mirror` writes them.
"""

import dataclasses
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files, publish

MARKER = "COMMITTED.json"
DAMAGED = "damaged"
_CHECKSUM = "marker_sha256"
_FOLDER = re.compile(r"(?P<name>[^./]+)\.(?P<attempt>\d{8}T\d{12}-[0-9a-f]{8})")


class DamagedError(StorageError):
    """A committed file is proven not to be what its marker says; one that only cannot be read is a StorageError."""


@dataclass(frozen=True)
class FileRecord:
    """What a marker says of one file: bytes and hex digest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Committed:
    """One committed folder. `marker` is empty where the marker itself is damaged; `verify` then says so."""

    name: str
    attempt: str
    path: str
    marker: dict[str, Any]


def new_attempt() -> str:
    """A unique name of one start: UTC time to the microsecond, so that names sort by age, and 32 random bits."""
    return f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


def stage(parent: str, name: str, attempt: str) -> str:
    """Makes `parent/name.attempt`, not committed yet, and returns its path. Every rank may call it."""
    folder = f"{name}.{attempt}"
    assert _FOLDER.fullmatch(folder), f"{folder} is not NAME.ATTEMPT with an attempt of new_attempt()"
    path = os.path.join(parent, folder)
    with files.failures("write", path):
        os.makedirs(path, exist_ok=True)
    return path


def describe(folder: str, names: Iterable[str]) -> dict[str, FileRecord]:
    """Reads the named files of a folder and returns their sizes and digests."""
    paths = {name: os.path.join(folder, name) for name in names}
    return {name: FileRecord(files.size(path), files.sha256(path)) for name, path in paths.items()}


def mark(folder: str, records: dict[str, FileRecord], content: dict[str, Any]) -> None:
    """Commits a folder whose files are written and synced: the marker holds `files` and the content's keys."""
    assert "files" not in content
    listed = {name: dataclasses.asdict(record) for name, record in records.items()}
    marker = json.loads(json.dumps({"files": listed, **content}))
    with files.failures("write", folder):
        publish.sync_folder(folder)
        publish.sync_folder(os.path.dirname(folder))
    publish.write_json(os.path.join(folder, MARKER), {**marker, _CHECKSUM: _checksum(marker)})


def is_folder(name: str) -> bool:
    """Whether a folder so named is staged or committed."""
    return _FOLDER.fullmatch(name) is not None


def scan(parent: str) -> list[Committed]:
    """The committed folders, ascending by name, one for each name: the later attempt."""
    latest = {found.name: found for found in _marked(parent)}
    return [latest[name] for name in sorted(latest)]


def verify(committed: Committed, names: Iterable[str] | None = None) -> None:
    """Compares files (all, or the named ones) with the marker: sizes first, then digests; StorageError otherwise."""
    if not committed.marker:
        raise DamagedError(f"{os.path.join(committed.path, MARKER)} is damaged; restore it or remove the folder")
    listed = {name: FileRecord(**record) for name, record in committed.marker["files"].items()}
    wanted = list(listed if names is None else names)
    for name in wanted:
        if name not in listed:
            raise StorageError(f"{committed.path} has no file {name}; its marker lists {', '.join(sorted(listed))}")
        path = os.path.join(committed.path, name)
        if not files.exists(path):
            raise DamagedError(f"{path} is missing; restore it or remove its folder")
        _compare(committed, name, "bytes", listed[name].size, files.size(path))
    for name in wanted:
        _compare(committed, name, "sha256", listed[name].sha256, files.sha256(os.path.join(committed.path, name)))


def prune(parent: str, keep: Collection[str]) -> list[str]:
    """Removes all but the names to keep, the oldest first; returns the removed paths."""
    assert keep, "pruning never removes everything"
    # Superseded attempts of a name come first in the listing: none can reappear when the last one goes.
    return [_remove(found.path) for found in _marked(parent) if found.name not in keep]


def quarantine(committed: Committed, because: str = DAMAGED) -> str:
    """Renames a folder so that nothing finds it any more; returns where it lies now, for a person to look."""
    aside = f"{committed.path}.{because}"
    with files.failures("rename", committed.path):
        os.replace(committed.path, aside)
        publish.sync_folder(os.path.dirname(aside))
    return aside


def abandon(folder: str) -> None:
    """Removes one staged folder, if it is there and was never committed."""
    if files.exists(folder) and not files.exists(os.path.join(folder, MARKER)):
        _remove(folder)


def sweep(parent: str) -> list[str]:
    """Removes folders that were never marked or that a later attempt supersedes; returns the removed paths."""
    valid = {found.path for found in scan(parent)}
    return [_remove(path) for _, _, path in _folders(parent) if path not in valid]


def _compare(committed: Committed, name: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        path = os.path.join(committed.path, name)
        raise DamagedError(
            f"{path} is damaged: {what} {found}, committed as {expected}; restore it or remove its folder"
        )


def _folders(parent: str) -> Iterator[tuple[str, str, str]]:
    """Name, attempt and path of every staged or committed folder, ascending by name, then attempt."""
    matches = [match for name in files.list_names(parent) if (match := _FOLDER.fullmatch(name))]
    for match in sorted(matches, key=lambda match: match.groups()):
        yield match["name"], match["attempt"], os.path.join(parent, match[0])


def _marked(parent: str) -> Iterator[Committed]:
    for name, attempt, path in _folders(parent):
        marker = _read_marker(os.path.join(path, MARKER))
        if marker is not None:
            yield Committed(name, attempt, path, marker)


def _read_marker(path: str) -> dict[str, Any] | None:
    """The marker without its own checksum; None where there is none, empty where it is damaged."""
    try:
        data = files.read_bytes(path)
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    try:
        marker = json.loads(data)
        expected = marker.pop(_CHECKSUM)
    except (ValueError, AttributeError, KeyError):
        return {}
    return marker if expected == _checksum(marker) else {}


def _checksum(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


def _remove(path: str) -> str:
    with files.failures("remove", path):
        marker = os.path.join(path, MARKER)
        if os.path.exists(marker):
            os.remove(marker)
            publish.sync_folder(path)
        shutil.rmtree(path)
    return path
