"""The mirror and its way back, against an object store in memory that can be told to fail at any operation."""

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dist_diffusion.errors import CheckpointError, StorageError
from dist_diffusion.observe.console import Console
from dist_diffusion.storage import committed, files, publish, restoring, service
from dist_diffusion.storage.mirror import Mirror
from dist_diffusion.storage.sync import Sync, copy_present

PARENTS = ("checkpoints", "averages")
LEAVE_OUT = ("lease.json",)
REMOTE = "gs://bucket/run"
OLD, NEW = "20250101T000000000000-00000000", "20250101T000000000001-00000000"


class Killed(BaseException):
    """Nothing that the code under test could catch."""


class Stream(io.RawIOBase):
    """Of an object."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        return self._data.readinto(buffer)


class Store:
    """Objects by path. `operations` are the changes and readings so far; `before` is asked first, and may raise."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.operations: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda action, path: None
        self._lock = threading.Lock()

    @contextmanager
    def killing_at(self, number: int) -> Iterator[None]:
        """What is done in the block is ended at the number-th operation."""
        end = len(self.operations) + number

        def before(action: str, path: str) -> None:
            if len(self.operations) > end:
                raise Killed

        self.before = before
        with pytest.raises(Killed):
            yield
        self.before = lambda action, path: None

    def exists(self, path: str) -> bool:
        return path in self.objects or self.is_dir(path)

    def is_dir(self, path: str) -> bool:
        return bool(self.tree(path))

    def list_names(self, folder: str) -> list[str]:
        return list({path.partition("/")[0] for path in self.tree(folder)})

    def size(self, path: str) -> int:
        return len(self._get(path))

    def sizes(self, folder: str, names: Iterable[str]) -> dict[str, int]:
        tree = self.tree(folder)
        return {name: tree[name] for name in names if name in tree}

    def tree(self, folder: str) -> dict[str, int]:
        with self._lock:
            below = folder + "/"
            return {path[len(below) :]: len(data) for path, data in self.objects.items() if path.startswith(below)}

    def open_raw(self, path: str) -> io.RawIOBase:
        self._note("read", path)
        return Stream(self._get(path))

    def upload(self, local: str, path: str) -> None:
        data = Path(local).read_bytes()
        self._note("upload", path)
        with self._lock:
            self.objects[path] = data

    def remove(self, path: str) -> None:
        self._note("remove", path)
        with self._lock:
            del self.objects[path]

    def changes(self) -> list[tuple[str, str]]:
        """What was done since the last call, paths from the remote folder."""
        done, self.operations = self.operations, []
        return [(action, path.removeprefix(f"{REMOTE}/")) for action, path in done if action != "read"]

    def _get(self, path: str) -> bytes:
        if path not in self.objects:
            raise service.absent()
        return self.objects[path]

    def _note(self, action: str, path: str) -> None:
        with self._lock:
            self.operations.append((action, path))
            self.before(action, path)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setitem(files._OBJECT_STORES, "gs", made)
    monkeypatch.setitem(files._REMOTE, "gs", made)
    return made


def commit(run: Path, step: int, attempt: str = OLD, parent: str = "checkpoints") -> str:
    folder = committed.stage(str(run / parent), f"step-{step}", attempt)
    for name in ("a.bin", "b.bin"):
        publish.write_bytes(os.path.join(folder, name), f"{parent} {name} {step} {attempt}".encode() * 10)
    committed.mark(folder, committed.describe(folder, ["a.bin", "b.bin"]), {"step": step})
    return folder


def make_run(run: Path) -> Path:
    """Two commits, one snapshot, plain files, and all kinds of things that are not to be copied."""
    for step in (1, 2):
        commit(run, step)
    commit(run, 2, parent="averages")
    for path, text in PLAIN.items():
        publish.write_bytes(str(run / path), text.encode())
    publish.write_bytes(str(run / "lease.json"), b"{}")
    publish.write_bytes(str(run / f"{files.TEMPORARY_PREFIX}1-config.yaml"), b"half")
    publish.write_bytes(os.path.join(committed.stage(str(run / "checkpoints"), "step-3", OLD), "a.bin"), b"half")
    shutil.copytree(run / f"checkpoints/step-1.{OLD}", run / f"checkpoints/step-7.{OLD}.damaged")
    return run


PLAIN = {
    "config.yaml": "a: 1\n",
    "metrics.jsonl": '{"step": 1}\n',
    "logs/rank-0.log": "said",
    "tensorboard/e": "",
    "x": "",
}
COPIED = {*PLAIN} | {
    f"{folder}.{OLD}/{name}"
    for folder in ("checkpoints/step-1", "checkpoints/step-2", "averages/step-2")
    for name in ("a.bin", "b.bin", committed.MARKER)
}


def sync(run: Path, said: list[str] | None = None, may_write: Callable[[], bool] = lambda: True) -> Sync:
    return Sync(str(run), REMOTE, PARENTS, LEAVE_OUT, ([] if said is None else said).append, may_write)


def restore(run: Path, said: list[str] | None = None) -> bool:
    return restoring.restore(str(run), REMOTE, PARENTS, ([] if said is None else said).append)


def names(parent: str) -> list[str]:
    """The commits, all of whose files are as their markers say."""
    found = committed.scan(parent)
    for each in found:
        committed.verify(each)
    return [each.name for each in found]


def content(run: Path) -> dict[str, bytes]:
    return {path: (run / path).read_bytes() for path in files.tree(str(run))}


def test_everything_that_counts_is_copied_and_comes_back(tmp_path: Path, store: Store) -> None:
    run, said = make_run(tmp_path / "run"), list[str]()
    mirror = Mirror(str(run), REMOTE, PARENTS, LEAVE_OUT, said.append)
    mirror.request()
    assert mirror.finish(None) is None
    assert set(files.tree(REMOTE)) == COPIED
    assert [line.partition(f" to {REMOTE} in ")[0] for line in said] == [
        "mirrored step-2",
        "mirrored step-1",
        "mirrored step-2",
    ]
    again = tmp_path / "again"
    assert restore(again, said)
    assert content(again) == {path: (run / path).read_bytes() for path in COPIED}
    assert names(str(again / "checkpoints")) == ["step-1", "step-2"]
    assert not restore(again) and not restore(run)


def test_a_marker_is_the_last_to_come_and_the_first_to_go(tmp_path: Path, store: Store) -> None:
    run = tmp_path / "run"
    folders = [os.path.relpath(commit(run, step), run) for step in (1, 2)]
    one = sync(run)
    one.run()
    for folder, done in zip(reversed(folders), (store.operations[:3], store.operations[3:6]), strict=True):
        assert done[-1] == ("upload", f"{REMOTE}/{folder}/{committed.MARKER}")
    store.changes()
    committed.prune(str(run / "checkpoints"), ["step-2"])
    one.run()
    removed = store.changes()
    assert removed[0] == ("remove", f"{folders[0]}/{committed.MARKER}") and len(removed) == 3
    assert names(f"{REMOTE}/checkpoints") == ["step-2"]


@pytest.mark.parametrize("number", range(16))
def test_killed_anywhere_the_copy_holds_only_whole_commits_and_the_next_pass_completes_it(
    tmp_path: Path, store: Store, number: int
) -> None:
    run = make_run(tmp_path / "run")
    store.objects[f"{REMOTE}/checkpoints/step-0.{OLD}/{committed.MARKER}"] = b"{}"
    store.objects[f"{REMOTE}/checkpoints/step-0.{OLD}/a.bin"] = b"old"
    store.objects[f"{REMOTE}/checkpoints/notes"] = b"not ours"
    with store.killing_at(number):
        sync(run).run()
    for found in committed.scan(f"{REMOTE}/checkpoints"):
        assert found.name == "step-0" or committed.verify(found) is None
    sync(run).run()
    assert set(files.tree(REMOTE)) == {*COPIED, "checkpoints/notes"}
    assert names(f"{REMOTE}/checkpoints") == ["step-1", "step-2"] and names(f"{REMOTE}/averages") == ["step-2"]


def test_an_upload_that_was_broken_off_goes_on_with_what_is_missing(tmp_path: Path, store: Store) -> None:
    run = tmp_path / "run"
    folder = os.path.relpath(commit(run, 1), run)
    store.objects[f"{REMOTE}/{folder}/a.bin"] = (run / folder / "a.bin").read_bytes()
    sync(run).run()
    assert store.changes() == [("upload", f"{folder}/b.bin"), ("upload", f"{folder}/{committed.MARKER}")]


def test_a_commit_pruned_while_it_is_uploaded_leaves_nothing_and_is_no_error(tmp_path: Path, store: Store) -> None:
    run, said = tmp_path / "run", list[str]()
    commit(run, 1)
    commit(run, 2)

    def prune(action: str, path: str) -> None:
        if path.endswith("b.bin") and "step-1" in path:
            committed.prune(str(run / "checkpoints"), ["step-2"])

    store.before = prune
    sync(run, said).run()
    assert names(f"{REMOTE}/checkpoints") == ["step-2"]
    assert not any("step-1" in path for path in store.objects)
    assert [line.split()[1] for line in said] == ["step-2"]


def test_plain_files_are_uploaded_when_they_change(tmp_path: Path, store: Store) -> None:
    run = make_run(tmp_path / "run")
    one = sync(run)
    one.run()
    store.changes()
    one.run()
    assert store.changes() == []
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 2}\n{"st')
    publish.write_bytes(str(run / "config.yaml"), b"a: 2\n")
    (run / "x").unlink()
    one.run()
    assert sorted(store.changes()) == [("upload", "config.yaml"), ("upload", "metrics.jsonl")]
    assert store.objects[f"{REMOTE}/metrics.jsonl"] == b'{"step": 1}\n{"step": 2}\n'
    assert f"{REMOTE}/x" in store.objects, "plain files are never removed there"


@pytest.mark.parametrize("text", ["", "no newline", "a\n", "a\nb", "a\n" + 200_000 * "b", 200_000 * "a" + "\nb\nc"])
def test_of_a_file_of_rows_whole_ones_are_copied(tmp_path: Path, text: str) -> None:
    for name in ("a.jsonl", "a.log"):
        (tmp_path / name).write_text(text)
        copy_present(str(tmp_path / name), str(tmp_path / f"copy-{name}"))
    assert (tmp_path / "copy-a.log").read_text() == text
    assert (tmp_path / "copy-a.jsonl").read_text() == text[: text.rfind("\n") + 1]


def test_a_plain_file_that_goes_away_is_no_error(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    one = sync(run)
    real = one._changed_files

    def listed() -> list:
        found = real()
        (run / "x").unlink()
        return found

    monkeypatch.setattr(one, "_changed_files", listed)
    one.run()
    assert set(files.tree(REMOTE)) == COPIED - {"x"}


def test_the_copy_stays_where_the_directory_was_removed(tmp_path: Path, store: Store) -> None:
    run = make_run(tmp_path / "run")
    one = sync(run)
    one.run()
    shutil.rmtree(run)
    one.run()
    assert set(files.tree(REMOTE)) == COPIED


def test_who_owns_the_directory_no_more_writes_nothing(tmp_path: Path, store: Store) -> None:
    run = make_run(tmp_path / "run")
    with pytest.raises(StorageError, match=f"{run} is another process's now: nothing more is written to {REMOTE}"):
        sync(run, may_write=lambda: False).run()
    beats = iter([True, True])
    with pytest.raises(StorageError, match="is another process's now"):
        sync(run, may_write=lambda: next(beats, False)).run()
    assert len(store.objects) == 1


def test_another_run_s_commit_there_ends_the_mirroring(tmp_path: Path, store: Store) -> None:
    run = make_run(tmp_path / "run")
    one = sync(run)
    one.run()
    commit(tmp_path / "other", 7, NEW)
    Sync(str(tmp_path / "other"), REMOTE, PARENTS, (), lambda text: None, lambda: True).run()
    before = dict(store.objects)
    commit(run, 3)
    with pytest.raises(StorageError, match=rf"another run has put checkpoints/step-7\.{NEW} into {REMOTE}"):
        one.run()
    assert store.objects == before


def test_of_two_runs_that_begin_with_one_mirror_the_first_to_commit_keeps_it(tmp_path: Path, store: Store) -> None:
    late = Mirror(str(tmp_path / "late"), REMOTE, PARENTS, LEAVE_OUT, lambda text: None)
    for _ in range(1000):
        if late._sync._known is None:
            threading.Event().wait(0.005)
    sync(make_run(tmp_path / "run")).run()
    commit(tmp_path / "late", 7, NEW)
    late.request()
    assert f"another run has put checkpoints/step-2.{OLD} into {REMOTE}" in str(late.finish(10))
    assert set(files.tree(REMOTE)) == COPIED


def test_a_file_that_the_disk_has_cut_is_named_and_not_committed_there(tmp_path: Path, store: Store) -> None:
    run = tmp_path / "run"
    os.truncate(os.path.join(commit(run, 1), "b.bin"), 3)
    with pytest.raises(StorageError, match=r"b\.bin has 3 bytes, its commit says \d+: look at the local file"):
        sync(run).run()
    assert names(f"{REMOTE}/checkpoints") == []


def test_requests_during_a_pass_lead_to_exactly_one_more(tmp_path: Path, store: Store, monkeypatch) -> None:
    passes, first, go_on = [], threading.Event(), threading.Event()

    def run(self: Sync) -> None:
        passes.append(1)
        first.set()
        assert go_on.wait(10)

    monkeypatch.setattr(Sync, "run", run)
    mirror = Mirror(str(tmp_path), REMOTE, PARENTS, LEAVE_OUT, print)
    mirror.request()
    assert first.wait(10)
    for _ in range(5):
        mirror.request()
    go_on.set()
    assert mirror.finish(10) is None
    assert len(passes) == 2 and not mirror._thread.is_alive()


def test_a_mirror_that_is_given_up_commits_nothing_later(tmp_path: Path, store: Store) -> None:
    run, said = make_run(tmp_path / "run"), list[str]()
    go_on = threading.Event()
    store.before = lambda action, path: go_on.wait(10) and None
    mirror = Mirror(str(run), REMOTE, PARENTS, LEAVE_OUT, said.append)
    mirror.request()
    left = mirror.finish(0.05)
    assert left == f"{REMOTE} was not brought up to date within 0.05 s; a later start goes on with it"
    go_on.set()
    mirror._thread.join(10)
    assert not mirror._thread.is_alive() and said == []
    assert not any(path.endswith(committed.MARKER) for path in store.objects)


def test_a_failure_is_said_and_the_next_pass_makes_up_for_it(tmp_path: Path, store: Store) -> None:
    run, said = make_run(tmp_path / "run"), list[str]()

    def refuse(action: str, path: str) -> None:
        raise service.answered(503)

    store.before = refuse
    mirror = Mirror(str(run), REMOTE, PARENTS, LEAVE_OUT, said.append)
    mirror.request()
    while not said:
        threading.Event().wait(0.005)
    assert said[0].startswith("the mirror is behind, the next pass tries again: cannot copy ")
    assert said[0].endswith("the service keeps answering 503; try again later")
    store.before = lambda action, path: None
    mirror.request()
    assert mirror.finish(10) is None
    assert set(files.tree(REMOTE)) == COPIED
    # The last pass is what counts at the end.
    store.before = refuse
    (run / "config.yaml").write_text("a: 3")
    mirror = Mirror(str(run), REMOTE, PARENTS, LEAVE_OUT, said.append)
    mirror.request()
    assert "keeps answering 503" in str(mirror.finish(10))


def test_a_web_server_is_refused_up_front(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="https:// is only read"):
        Mirror(str(tmp_path), "https://host/run", PARENTS, LEAVE_OUT, print)


@pytest.mark.parametrize("number", range(16))
def test_a_restoring_that_was_killed_anywhere_goes_on(tmp_path: Path, store: Store, number: int) -> None:
    sync(make_run(tmp_path / "run")).run()
    again = tmp_path / "again"
    with store.killing_at(number):
        restore(again)
    for parent in PARENTS:
        names(str(again / parent))
    # Before the note that it has begun, nothing was there; after it, all comes, though there are commits already.
    assert restore(again)
    assert set(files.tree(str(again))) == COPIED
    assert content(again) == {path: (tmp_path / "run" / path).read_bytes() for path in COPIED}


def test_what_has_come_is_not_fetched_again(tmp_path: Path, store: Store) -> None:
    sync(make_run(tmp_path / "run")).run()
    again = tmp_path / "again"
    with store.killing_at(12):
        restore(again)
    come = [path for path in files.tree(str(again)) if path.endswith(".bin")]
    assert come
    store.operations = []
    restore(again)
    assert not {f"{REMOTE}/{path}" for path in come} & {path for _, path in store.operations}


def test_a_damaged_commit_there_is_named_and_the_one_before_comes(tmp_path: Path, store: Store) -> None:
    sync(make_run(tmp_path / "run")).run()
    path = f"{REMOTE}/checkpoints/step-2.{OLD}/a.bin"
    store.objects[path] = b"X" + store.objects[path][1:]
    again, said = tmp_path / "again", list[str]()
    assert restore(again, said)
    aside = again / f"checkpoints/step-2.{OLD}.damaged-there"
    (told,) = [line for line in said if "cannot be used" in line]
    assert told.startswith(f"step-2 cannot be used: {path} is damaged: sha256 ") and told.endswith(str(aside))
    assert names(str(again / "checkpoints")) == ["step-1"] and aside.is_dir()
    # It is known, so the run may go on here; the copy of the damaged one goes.
    restoring.check(str(again), REMOTE, PARENTS)
    sync(again).run()
    assert names(f"{REMOTE}/checkpoints") == ["step-1"]


def test_the_copy_of_one_that_was_damaged_here_stays_while_that_lies_aside(tmp_path: Path, store: Store) -> None:
    run = make_run(tmp_path / "run")
    sync(run).run()
    (damaged,) = [found for found in committed.scan(str(run / "checkpoints")) if found.name == "step-2"]
    aside = committed.quarantine(damaged)
    sync(run).run()
    assert names(f"{REMOTE}/checkpoints") == ["step-1", "step-2"]
    shutil.rmtree(aside)
    sync(run).run()
    assert names(f"{REMOTE}/checkpoints") == ["step-1"]


def test_all_damaged_is_an_error_at_every_start(tmp_path: Path, store: Store) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        commit(run, step)
    sync(run).run()
    del store.objects[f"{REMOTE}/checkpoints/step-1.{OLD}/a.bin"]
    store.objects[f"{REMOTE}/checkpoints/step-2.{OLD}/{committed.MARKER}"] += b"x"
    outside = json.loads(store.objects[f"{REMOTE}/checkpoints/step-3.{OLD}/{committed.MARKER}"])
    outside["files"]["../../a"] = outside["files"].pop("a.bin")
    del outside["marker_sha256"]
    outside["marker_sha256"] = committed._checksum(outside)
    store.objects[f"{REMOTE}/checkpoints/step-3.{OLD}/{committed.MARKER}"] = json.dumps(outside).encode()
    for _ in range(2):
        said: list[str] = []
        with pytest.raises(CheckpointError, match=f"{REMOTE}/checkpoints: none of its 3 commits can be used"):
            restore(tmp_path / "again", said)
        assert [("is damaged" in line, "is missing" in line) for line in said[1:]] == [(1, 0), (1, 0), (0, 1)]
    assert not (tmp_path / "again/a").exists()


def test_names_that_lead_out_of_the_folder_are_not_restored(tmp_path: Path, store: Store) -> None:
    sync(make_run(tmp_path / "run")).run()
    for name in ("../outside", "a/../../outside", "/outside", "./a"):
        store.objects[f"{REMOTE}/{name}"] = b"x"
    assert restore(tmp_path / "again/run")
    assert set(files.tree(str(tmp_path / "again"))) == {f"run/{path}" for path in COPIED}


def test_an_empty_mirror_restores_nothing(tmp_path: Path, store: Store) -> None:
    store.objects[f"{REMOTE}/metrics.jsonl"] = b"of a run that was lost before its first commit"
    store.objects[f"{REMOTE}/checkpoints/step-1.{OLD}/a.bin"] = b"half"
    assert not restore(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_files_that_are_there_stay(tmp_path: Path, store: Store) -> None:
    sync(make_run(tmp_path / "run")).run()
    publish.write_bytes(str(tmp_path / "again/logs/rank-0.log"), b"newer")
    assert restore(tmp_path / "again")
    assert (tmp_path / "again/logs/rank-0.log").read_bytes() == b"newer"


def test_a_log_that_begins_with_the_first_word_goes_on_where_it_was(tmp_path: Path, store: Store) -> None:
    sync(make_run(tmp_path / "run")).run()
    console = Console(str(tmp_path / "again/logs/rank-0.log"), 0)
    assert restoring.restore(str(tmp_path / "again"), REMOTE, PARENTS, console.say)
    console.close()
    assert (tmp_path / "again/logs/rank-0.log").read_text().startswith(f"{PLAIN['logs/rank-0.log']}2")


def test_a_newer_commit_there_is_refused_with_what_to_do(tmp_path: Path, store: Store) -> None:
    run = tmp_path / "run"
    for step in (1, 2):
        commit(run, step)
    sync(run).run()
    restoring.check(str(run), REMOTE, PARENTS)
    restoring.check(str(tmp_path / "empty"), REMOTE, PARENTS)
    (newest,) = [found for found in committed.scan(str(run / "checkpoints")) if found.name == "step-2"]
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(tmp_path / f"copy/checkpoints/step-2.{OLD}")
    with pytest.raises(
        CheckpointError, match=rf"{REMOTE} holds step-2\.{OLD}, newer than step-1 in .*copy: another run"
    ):
        restoring.check(str(tmp_path / "copy"), REMOTE, PARENTS)
    committed.quarantine(newest)
    restoring.check(str(run), REMOTE, PARENTS)
    # The same step again, by a later start.
    commit(tmp_path / "other", 1, NEW)
    Sync(str(tmp_path / "other"), f"{REMOTE}-2", PARENTS, (), print, lambda: True).run()
    with pytest.raises(CheckpointError, match=rf"holds step-1\.{NEW}, newer than step-1"):
        restoring.check(str(run), f"{REMOTE}-2", PARENTS)
