import errno
import os
import threading

import pytest

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files, publish


def test_write_replaces_the_whole_file_and_makes_its_folder(tmp_path):
    path = tmp_path / "deep" / "er" / "a.json"
    publish.write_json(str(path), {"a": [1, 2]})
    publish.write_json(str(path), {"b": None})
    assert files.read_json(str(path)) == {"b": None}
    assert os.listdir(path.parent) == ["a.json"]


def test_an_exception_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), publish.atomic_file(str(path)) as temporary:
        assert os.path.dirname(temporary) == str(tmp_path) and temporary.endswith(".npz")
        with open(temporary, "wb") as stream:
            stream.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise RuntimeError("interrupted")
    assert os.listdir(tmp_path) == ["a.npz"]
    assert path.read_bytes() == b"old"


def test_the_content_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    events = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b)))
    publish.write_bytes(str(tmp_path / "a"), b"x")
    assert events[0].endswith("-a") and events[1:] == ["replace", str(tmp_path)]


def test_a_second_name_takes_no_room_and_copying_onto_it_copies_nothing(tmp_path):
    source, path = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_bytes(b"content")
    publish.link(str(source), str(path))
    assert path.samefile(source)
    # A killed writer may have left another file in its place.
    path.unlink()
    path.write_bytes(b"another")
    for _ in range(2):
        publish.link(str(source), str(path))
        assert path.samefile(source)
    assert publish.copy(str(source), str(path)) == files.sha256(str(source))
    assert path.samefile(source) and os.listdir(path.parent) == ["b"]
    # Replacing one leaves the other.
    publish.write_bytes(str(path), b"new")
    assert source.read_bytes() == b"content"


def test_where_there_are_no_second_names_the_copy_is_one(tmp_path, monkeypatch):
    source, path = tmp_path / "a", tmp_path / "b"
    source.write_bytes(b"content")

    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    publish.link(str(source), str(path))
    assert os.listdir(tmp_path) == ["a"]
    assert publish.copy(str(source), str(path)) == files.sha256(str(source))
    assert path.read_bytes() == b"content" and not path.samefile(source)


def test_readers_never_see_a_part(tmp_path):
    path = str(tmp_path / "a")
    contents = [bytes([number]) * 100_000 for number in range(2)]
    publish.write_bytes(path, contents[0])
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(files.read_bytes(path))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        publish.write_bytes(path, contents[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)
    assert files.list_names(str(tmp_path)) == ["a"]


def test_of_many_creators_exactly_one_wins(tmp_path):
    path = str(tmp_path / "claim")
    start = threading.Barrier(8)
    won = []

    def create(number):
        start.wait()
        if publish.create_exclusive(path, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert files.read_bytes(path) == str(won[0]).encode()
    assert os.listdir(tmp_path) == ["claim"]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/file/a"):
        publish.write_bytes(str(tmp_path / "file" / "a"), b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=f"cannot write {tmp_path}/folder: Is a directory"):
        publish.write_bytes(str(tmp_path / "folder"), b"")


def test_a_copy_has_the_same_bytes(tmp_path):
    source, copied = tmp_path / "a.bin", tmp_path / "deep" / "b.bin"
    source.write_bytes(os.urandom(3 * publish.COPY_BYTES // 2))
    publish.copy(str(source), str(copied))
    assert copied.read_bytes() == source.read_bytes() and os.listdir(copied.parent) == ["b.bin"]
    with pytest.raises(StorageError, match=r"gone\.bin"):
        publish.copy(str(tmp_path / "gone.bin"), str(copied))
    assert copied.read_bytes() == source.read_bytes()


def test_a_damaged_copy_replaces_nothing(tmp_path, monkeypatch):
    source, copied = tmp_path / "a.bin", tmp_path / "b.bin"
    source.write_bytes(b"right")
    copied.write_bytes(b"old")
    monkeypatch.setattr(publish.shutil, "copyfileobj", lambda stream, to, size: to.write(b"wrong"))
    with pytest.raises(StorageError, match=r"the copy of .*a\.bin for .*b\.bin is damaged"):
        publish.copy(str(source), str(copied))
    assert copied.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["a.bin", "b.bin"]


def test_a_removed_file_is_gone_and_an_absent_one_no_error(tmp_path):
    (tmp_path / "a").touch()
    for _ in range(2):
        publish.remove(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []
    with pytest.raises(StorageError, match=f"cannot remove {tmp_path}"):
        publish.remove(str(tmp_path))
