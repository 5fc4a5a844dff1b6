"""One pass that makes a folder of an object store a copy of a local directory.

The directory holds committed folders, which never change, and plain files, which may be replaced or grow. There, too, a
committed folder exists once its marker is there, which comes last and goes first. Plain files are never removed there.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import committed, files, publish
from dist_diffusion.storage.committed import MARKER, Committed

Say = Callable[[str], None]
Item = TypeVar("Item")
_AT_ONCE = 4
_BLOCK = 1 << 16


class Sync:
    """What `Mirror` does in its thread; one pass at a time."""

    def __init__(
        self,
        local: str,
        remote: str,
        parents: Sequence[str],
        leave_out: Sequence[str],
        say: Say,
        may_write: Callable[[], bool],
    ) -> None:
        self.local, self.remote, self.parents = local, remote, parents
        self._not_plain = {*parents, *leave_out}
        self._say, self._may_write = say, may_write
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._known: set[str] | None = None

    def look(self) -> dict[str, dict[str, int]]:
        """The folders that are there. What has a marker at the first look is this run's: `restoring.check` has seen
        to that. Marked ones that come later are, too, or there is another run.
        """
        folders = folders_in(files.tree(self.remote), self.parents)
        if self._known is None:
            self._known = _marked(folders)
        return folders

    def run(self) -> None:
        """One pass: committed folders, plain files, then what is to go. StorageError ends it where it is."""
        self._check_owner()
        folders = self.look()
        self._check_no_other_writes(folders)
        for parent in self.parents:
            # The newest first: it is worth most.
            for commit in reversed(committed.scan(os.path.join(self.local, parent))):
                held = folders.get(_folder(parent, commit), {})
                if commit.marker and MARKER not in held:
                    self._upload_commit(commit, _folder(parent, commit), held)
        each(self._upload_plain, self._changed_files())
        self._remove_gone()

    def _check_owner(self) -> None:
        if not self._may_write():
            raise StorageError(f"{self.local} is another process's now: nothing more is written to {self.remote}")

    def _check_no_other_writes(self, folders: Mapping[str, Mapping[str, int]]) -> None:
        assert self._known is not None
        foreign = sorted(_marked(folders) - self._known)
        if foreign:
            raise StorageError(
                f"another run has put {foreign[-1]} into {self.remote}, where nothing is changed any more: "
                "give each run a mirror of its own"
            )

    def _upload_commit(self, commit: Committed, folder: str, held: Mapping[str, int]) -> None:
        """Uploads what is not held there yet. One that is pruned in the meantime gets no marker."""
        start, target, marker = time.monotonic(), files.join(self.remote, folder), os.path.join(commit.path, MARKER)
        sizes = {name: record["size"] for name, record in commit.marker["files"].items()}

        def upload(name: str) -> None:
            self._check_owner()
            publish.upload(os.path.join(commit.path, name), files.join(target, name))

        try:
            each(upload, [name for name, size in sizes.items() if held.get(name) != size])
            _check_sizes(target, sizes)
            assert self._known is not None
            self._known.add(folder)
            upload(MARKER)
        except StorageError:
            if os.path.exists(marker):
                raise
            return
        self._say(f"mirrored {commit.name} to {self.remote} in {time.monotonic() - start:.1f} s")

    def _changed_files(self) -> list[tuple[str, tuple[int, int]]]:
        """Plain files, with size and time, that are not as they were when this process last uploaded them."""
        plain = [path for path in files.tree(self.local) if path.partition("/")[0] not in self._not_plain]
        stamps = {path: stamp for path in plain if (stamp := _stamp(os.path.join(self.local, path)))}
        return [(path, stamp) for path, stamp in stamps.items() if self._uploaded.get(path) != stamp]

    def _upload_plain(self, changed: tuple[str, tuple[int, int]]) -> None:
        path, stamp = changed
        source = os.path.join(self.local, path)
        try:
            with publish.atomic_file(files.join(self.remote, path)) as temporary:
                copy_present(source, temporary)
                self._check_owner()
        except StorageError:
            if os.path.exists(source):
                raise
            return
        self._uploaded[path] = stamp

    def _remove_gone(self) -> None:
        """Removes folders that are not committed here: pruned ones, and parts of uploads that were broken off.

        The copy of one that was found damaged here, and set aside, may be whole: it stays as long as that lies there.
        Where none at all is left here, somebody has removed the directory: the copy stays.
        """
        here = [_folder(parent, c) for parent in self.parents for c in committed.scan(os.path.join(self.local, parent))]
        alive = {folder.partition("/")[0] for folder in here}
        for folder, names in folders_in(files.tree(self.remote), self.parents).items():
            damaged_here = os.path.exists(os.path.join(self.local, f"{folder}.{committed.DAMAGED}"))
            if folder not in here and folder.partition("/")[0] in alive and not damaged_here:
                self._check_owner()
                target = files.join(self.remote, folder)
                if MARKER in names:
                    publish.remove(files.join(target, MARKER))
                each(publish.remove, [files.join(target, name) for name in names if name != MARKER])


def each(do: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Does it to all items, a few at once; after an error no more are begun."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(do, items):
            pass


def folders_in(tree: Mapping[str, int], parents: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of a directory's files, those of its staged and committed folders: by "parent/folder", bytes by name."""
    folders: dict[str, dict[str, int]] = {}
    for path, size in tree.items():
        parent, _, rest = path.partition("/")
        folder, _, name = rest.partition("/")
        if name and parent in parents and committed.is_folder(folder):
            folders.setdefault(f"{parent}/{folder}", {})[name] = size
    return folders


def _marked(folders: Mapping[str, Mapping[str, int]]) -> set[str]:
    return {folder for folder, names in folders.items() if MARKER in names}


def copy_present(source: str, path: str) -> None:
    """Copies what a file that may be growing holds now; of a .jsonl file, whole lines."""
    with files.failures("copy", source), open(source, "rb") as stream, open(path, "xb") as copied:
        left = _whole_lines(stream) if source.endswith(".jsonl") else os.fstat(stream.fileno()).st_size
        stream.seek(0)
        while block := stream.read(min(left, publish.COPY_BYTES)):
            copied.write(block)
            left -= len(block)


def _whole_lines(stream: BinaryIO) -> int:
    """Bytes up to the last newline."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _check_sizes(folder: str, sizes: Mapping[str, int]) -> None:
    """StorageError where files of a remote folder are missing or have other sizes."""
    found = files.sizes(folder, sizes)
    for name, size in sizes.items():
        if found.get(name) != size:
            path, bytes_there = files.join(folder, name), found.get(name, "no")
            raise StorageError(f"{path} has {bytes_there} bytes, its commit says {size}: look at the local file")


def _folder(parent: str, commit: Committed) -> str:
    return f"{parent}/{os.path.basename(commit.path)}"


def _stamp(path: str) -> tuple[int, int] | None:
    """Size and time of a change; None where the file has gone."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns
