"""Reading back what a `mirror` holds, into a directory that has lost it."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from dist_diffusion.errors import CheckpointError, StorageError
from dist_diffusion.storage import committed, files, publish
from dist_diffusion.storage.committed import MARKER, Committed, DamagedError, FileRecord
from dist_diffusion.storage.sync import Say, each, folders_in

UNFINISHED = "restoring.json"
"""Lies in a directory while it is being restored: a start that finds it goes on with that."""
_ATTEMPTS = 2


def restore(local: str, remote: str, parents: Sequence[str], say: Say) -> bool:
    """Copies everything back where `local` has no committed folder in parents[0] and `remote` has; whether it did.

    Files that are in `local` stay. A damaged folder is named and set aside; CheckpointError where all of parents[0] are
    damaged.
    """
    unfinished = os.path.join(local, UNFINISHED)
    there = files.join(remote, parents[0])
    if not os.path.exists(unfinished):
        if committed.scan(os.path.join(local, parents[0])) or not committed.scan(there):
            return False
        publish.write_json(unfinished, {"from": remote})
    # Before anything is said, for that may begin a log in `local`.
    _restore_plain(local, remote, parents)
    say(f"restoring {local} from {remote}")
    for parent in parents:
        commits = reversed(committed.scan(files.join(remote, parent)))
        usable = [_restore_commit(commit, os.path.join(local, parent), say) for commit in commits]
        if parent == parents[0] and not any(usable):
            raise CheckpointError(
                f"{there}: none of its {len(usable)} commits can be used (see above): mend one there; or, to begin "
                f"anew, remove them all and {unfinished}"
            )
    publish.remove(unfinished)
    return True


def check(local: str, remote: str, parents: Sequence[str]) -> None:
    """CheckpointError where `remote` holds a newer commit than those of `local`, if that has any.

    One that was set aside in `local` counts as known.
    """
    parent = os.path.join(local, parents[0])
    commits = committed.scan(parent)
    if not commits:
        return
    newest, beside = _age(os.path.basename(commits[-1].path)), files.list_names(parent)
    for path, names in folders_in(files.tree(remote), parents[:1]).items():
        folder = path.partition("/")[2]
        if MARKER in names and _age(folder) > newest and not any(name.startswith(f"{folder}.") for name in beside):
            raise CheckpointError(
                f"{remote} holds {folder}, newer than {commits[-1].name} in {local}: another run writes there, or this "
                f"directory is an old copy. Give the run a mirror of its own; or, to go on from there, an empty "
                f"directory; or, to go on from here, remove {files.join(remote, path, MARKER)}"
            )


def _restore_commit(commit: Committed, parent: str, say: Say) -> bool:
    """Whether it can be used; its files that have come already, before a kill, are not fetched again."""
    start = time.monotonic()
    folder = committed.stage(parent, commit.name, commit.attempt)
    if os.path.exists(os.path.join(folder, MARKER)):
        return True
    try:
        records = _records(commit)
        each(lambda name: _fetch(commit, name, folder, records[name]), records)
    except DamagedError as error:
        because = "damaged-there"
        # An earlier start may have set the same aside.
        shutil.rmtree(f"{folder}.{because}", ignore_errors=True)
        aside = committed.quarantine(replace(commit, path=folder), because)
        say(f"{commit.name} cannot be used: {error}; what came is set aside as {aside}")
        return False
    committed.mark(folder, records, {key: value for key, value in commit.marker.items() if key != "files"})
    say(f"restored {commit.name} in {time.monotonic() - start:.1f} s")
    return True


def _records(commit: Committed) -> dict[str, FileRecord]:
    """The files that the marker lists; DamagedError where it is damaged, or names what is not in its folder."""
    records = {name: FileRecord(**record) for name, record in commit.marker.get("files", {}).items()}
    if not commit.marker or any(os.path.basename(name) != name or name.startswith(".") for name in records):
        raise DamagedError(f"{files.join(commit.path, MARKER)} is damaged")
    return records


def _fetch(commit: Committed, name: str, folder: str, record: FileRecord) -> None:
    source, path = files.join(commit.path, name), os.path.join(folder, name)
    if os.path.exists(path) and files.sha256(path) == record.sha256:
        return
    for _ in range(_ATTEMPTS):
        try:
            digest = publish.download(source, path)
        except StorageError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                raise DamagedError(f"{source} is missing") from err
            raise
        if digest == record.sha256:
            return
    raise DamagedError(f"{source} is damaged: sha256 {digest}, committed as {record.sha256} (read {_ATTEMPTS} times)")


def _restore_plain(local: str, remote: str, parents: Sequence[str]) -> None:
    def fetch(path: str) -> None:
        publish.download(files.join(remote, path), os.path.join(local, path))

    there = [path for path in files.tree(remote) if path.partition("/")[0] not in parents]
    each(fetch, [path for path in there if not os.path.exists(os.path.join(local, path))])


def _age(folder: str) -> list[str]:
    """What sorts folders of commits: name, then attempt."""
    return folder.split(".")
