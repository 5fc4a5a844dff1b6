import os
import shutil

import pytest

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import committed, publish

OLD, NEW = "20250101T000000000000-00000000", "20250101T000000000001-00000000"


def commit(parent, name, attempt, data=b"data", **content):
    folder = committed.stage(str(parent), name, attempt)
    publish.write_bytes(os.path.join(folder, "a.bin"), data)
    publish.write_bytes(os.path.join(folder, "b.bin"), data * 2)
    committed.mark(folder, committed.describe(folder, ["a.bin", "b.bin"]), content)
    return folder


def names(parent):
    return [found.name for found in committed.scan(str(parent))]


def test_attempts_are_unique_and_sort_by_time():
    attempts = [committed.new_attempt() for _ in range(100)]
    assert len(set(attempts)) == 100
    assert [a[:21] for a in attempts] == sorted(a[:21] for a in attempts)


def test_a_committed_folder_is_found_and_verifies(tmp_path):
    commit(tmp_path, "step-0002", committed.new_attempt(), step=2, shape=(1, 2), by_rank={0: "x"})
    commit(tmp_path, "step-0001", committed.new_attempt(), step=1)
    first, second = committed.scan(str(tmp_path))
    assert (first.name, second.name) == ("step-0001", "step-0002")
    assert second.marker["step"] == 2 and second.marker["shape"] == [1, 2]
    assert second.marker["files"]["b.bin"]["size"] == 8
    committed.verify(second)
    committed.verify(second, ["a.bin"])


def test_a_torn_folder_does_not_exist(tmp_path):
    commit(tmp_path, "step-1", OLD)
    folder = committed.stage(str(tmp_path), "step-2", OLD)
    publish.write_bytes(os.path.join(folder, "a.bin"), b"half")
    assert names(tmp_path) == ["step-1"]
    assert names(tmp_path / "absent") == []


def test_a_crash_while_marking_commits_nothing(tmp_path, monkeypatch):
    folder = committed.stage(str(tmp_path), "step-1", OLD)

    def crash(source, destination):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        committed.mark(folder, {}, {})
    assert names(tmp_path) == [] and os.listdir(folder) == []


def test_of_two_attempts_the_later_wins(tmp_path):
    commit(tmp_path, "step-1", NEW, data=b"new")
    commit(tmp_path, "step-1", OLD, data=b"old")
    (found,) = committed.scan(str(tmp_path))
    assert found.attempt == NEW


@pytest.mark.parametrize("position", range(4))
def test_a_flipped_byte_is_named(tmp_path, position):
    folder = commit(tmp_path, "step-1", OLD)
    data = bytearray(b"data")
    data[position] ^= 1
    with open(os.path.join(folder, "a.bin"), "wb") as stream:
        stream.write(data)
    (found,) = committed.scan(str(tmp_path))
    with pytest.raises(StorageError, match=r"a\.bin is damaged: sha256"):
        committed.verify(found)
    committed.verify(found, ["b.bin"])


def test_a_cut_or_missing_file_is_named(tmp_path):
    folder = commit(tmp_path, "step-1", OLD)
    (found,) = committed.scan(str(tmp_path))
    os.truncate(os.path.join(folder, "b.bin"), 3)
    with pytest.raises(StorageError, match=r"b\.bin is damaged: bytes 3, committed as 8"):
        committed.verify(found)
    os.remove(os.path.join(folder, "a.bin"))
    with pytest.raises(StorageError, match=r"a\.bin is missing"):
        committed.verify(found)
    with pytest.raises(StorageError, match=r"has no file c\.bin; its marker lists a\.bin, b\.bin"):
        committed.verify(found, ["c.bin"])


def test_a_flipped_byte_of_the_marker_is_named(tmp_path):
    folder = commit(tmp_path, "step-1", OLD, step=17)
    path = os.path.join(folder, committed.MARKER)
    with open(path, "rb") as stream:
        good = stream.read()
    for position, byte in list(enumerate(good))[::3]:
        if chr(byte).isspace():
            continue
        with open(path, "wb") as stream:
            stream.write(good[:position] + bytes([byte ^ 1]) + good[position + 1 :])
        (found,) = committed.scan(str(tmp_path))
        with pytest.raises(StorageError, match=r"COMMITTED\.json is damaged"):
            committed.verify(found)


def test_prune_keeps_what_is_named_and_removes_the_oldest_first(tmp_path):
    folders = [commit(tmp_path, f"step-{step}", OLD) for step in range(5)]
    superseding = commit(tmp_path, "step-1", NEW)
    removed = committed.prune(str(tmp_path), ["step-3", "step-4"])
    assert removed == [folders[0], folders[1], superseding, folders[2]]
    assert names(tmp_path) == ["step-3", "step-4"]
    assert len(os.listdir(tmp_path)) == 2
    assert committed.prune(str(tmp_path), ["step-3", "step-4"]) == []


def test_pruning_takes_the_marker_first(tmp_path, monkeypatch):
    folder = commit(tmp_path, "step-1", OLD)
    commit(tmp_path, "step-2", OLD)

    def crash(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        committed.prune(str(tmp_path), ["step-2"])
    assert names(tmp_path) == ["step-2"]
    assert sorted(os.listdir(folder)) == ["a.bin", "b.bin"]
    monkeypatch.undo()
    assert committed.sweep(str(tmp_path)) == [folder]


def test_a_pruned_name_does_not_come_back_half_way(tmp_path, monkeypatch):
    commit(tmp_path, "step-1", OLD)
    commit(tmp_path, "step-1", NEW)
    commit(tmp_path, "step-2", OLD)
    seen = []
    real = shutil.rmtree

    def watch(path):
        real(path)
        seen.append([(found.name, found.attempt) for found in committed.scan(str(tmp_path))])

    monkeypatch.setattr(shutil, "rmtree", watch)
    committed.prune(str(tmp_path), ["step-2"])
    assert seen == [[("step-1", NEW), ("step-2", OLD)], [("step-2", OLD)]]


def test_sweep_removes_torn_and_superseded_folders_only(tmp_path):
    torn = committed.stage(str(tmp_path), "step-3", OLD)
    superseded = commit(tmp_path, "step-1", OLD)
    kept = [commit(tmp_path, "step-1", NEW), commit(tmp_path, "step-2", OLD)]
    for name in ("notes", f"step-2.{OLD}.bak"):
        (tmp_path / name).mkdir()
    assert committed.sweep(str(tmp_path)) == [superseded, torn]
    assert sorted(os.listdir(tmp_path)) == sorted([*map(os.path.basename, kept), "notes", f"step-2.{OLD}.bak"])


def test_a_damaged_commit_set_aside_is_found_by_nothing_and_kept(tmp_path):
    commit(tmp_path, "step-1", committed.new_attempt())
    commit(tmp_path, "step-2", committed.new_attempt())
    (newest,) = [found for found in committed.scan(str(tmp_path)) if found.name == "step-2"]
    aside = committed.quarantine(newest)
    assert os.path.isdir(aside) and not os.path.exists(newest.path)
    assert [found.name for found in committed.scan(str(tmp_path))] == ["step-1"]
    assert committed.sweep(str(tmp_path)) == [] and committed.prune(str(tmp_path), ["step-1"]) == []
    assert os.path.exists(os.path.join(aside, committed.MARKER))
