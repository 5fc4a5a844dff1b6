import errno
import fcntl
import hashlib
import io
import os
import stat
import subprocess
import sys
import threading
import time
from collections import Counter, namedtuple
from contextlib import closing, contextmanager

import pytest

from dist_diffusion.errors import ConfigError, StorageError
from dist_diffusion.storage import cache, files
from dist_diffusion.storage.cache import GIB, Cache

SIZE = 300_000

# Opens the sources in an order of its own, checks every byte, and writes down what was read from the sources.
WORKER = """
import hashlib, os, random, sys
from dist_diffusion.storage import cache, files

folder, limit, rounds, seed, log, *paths = sys.argv[1:]
open_read = files.open_read

def logged(path):
    with open(log, "a") as stream:
        stream.write(path + "\\n")
    return open_read(path)

files.open_read = logged
ours = cache.Cache(folder, int(limit))
draws = random.Random(int(seed))
for _ in range(int(rounds)):
    for path in draws.sample(paths, len(paths)):
        sha256 = os.path.basename(path)
        held = ours.open(path, sha256, os.stat(path).st_size)
        assert hashlib.sha256(os.pread(held.descriptor, 1 << 30, 0)).hexdigest() == sha256, "partial content"
        assert os.path.samestat(os.stat(held.path), os.fstat(held.descriptor)), "held, but no longer there"
        held.close()
        ours.fetch(path, sha256)
assert not {"torch", "numpy", "blobfile"} & set(sys.modules)
"""
FETCH = """
import sys
from dist_diffusion.storage.cache import Cache
folder, path, sha256, size = sys.argv[1:]
Cache(folder, 1 << 30).fetch(path, sha256, int(size))
"""


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def reads(monkeypatch):
    """How often each source was opened in this process."""
    counts = Counter()
    open_read = files.open_read
    monkeypatch.setattr(files, "open_read", lambda path: counts.update([path]) or open_read(path))
    return counts


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(cache, "_PATIENCE_S", 0.0)


def content(number, size=SIZE):
    return hashlib.sha256(str(number).encode()).digest() * (size // 32)


def make_sources(folder, count):
    """Files that are named by their checksum."""
    folder.mkdir()
    for number in range(count):
        (folder / hashlib.sha256(content(number)).hexdigest()).write_bytes(content(number))
    return [str(path) for path in sorted(folder.iterdir())]


def hold(ours, path):
    return ours.open(path, os.path.basename(path), os.stat(path).st_size)


def touch(ours, path):
    """Later than whatever was touched before: the kernel's clock of files stands still for 4 ms."""
    time.sleep(0.01)
    ours.fetch(path, os.path.basename(path))


def cached(folder):
    """Checksums of what is published; nothing but the lock is there besides."""
    names = set(os.listdir(folder)) - {cache._LOCK}
    assert all(len(name.partition("-")[0]) == 64 for name in names), names
    return {name.partition("-")[0] for name in names}


def cached_partials(folder):
    """Checksums of what is being fetched."""
    return [name.removeprefix(".tmp-") for name in os.listdir(folder) if name.startswith(".tmp-")]


def start_worker(*args):
    return subprocess.Popen([sys.executable, "-c", *map(str, args)], stderr=subprocess.PIPE, text=True)


def finish(processes):
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


@contextmanager
def in_thread(action):
    """Runs the action meanwhile; afterwards it has ended, and the list holds what it returned or raised."""
    results = []

    def run():
        try:
            results.append(action())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield results
    thread.join(20)
    assert not thread.is_alive()


class SlowSource:
    """A pipe that gives its content in two halves: the first has arrived when `give_half` returns."""

    def __init__(self, path, data):
        self.path = str(path)
        self._data = data
        os.mkfifo(path)

    def give_half(self):
        self._stream = open(self.path, "wb", buffering=0)  # noqa: SIM115
        self._stream.write(self._data[: len(self._data) // 2])

    def give_rest(self):
        self._stream.write(self._data[len(self._data) // 2 :])
        self._stream.close()


def test_a_file_is_fetched_once_by_its_content(tmp_path, folder, reads):
    (path,) = make_sources(tmp_path / "source", 1)
    other = str(tmp_path / "shard-000001.tar")
    ours = Cache(folder, GIB)
    sha256 = os.path.basename(path)
    for size in (None, SIZE):
        with closing(ours.open(path, sha256, size)) as held:
            assert os.pread(held.descriptor, 2 * SIZE, 0) == content(0)
            with open(held.path, "rb") as stream:
                assert stream.read() == content(0)
    ours.fetch(other, sha256)
    assert reads == {path: 1} and not os.path.exists(other)


def test_names_tell_which_shard_it_is(tmp_path, folder):
    path = tmp_path / "train shard?000001.tar"
    path.write_bytes(content(0))
    sha256 = hashlib.sha256(content(0)).hexdigest()
    with closing(Cache(folder, GIB).open(str(path), sha256)) as held:
        assert held.path == os.path.join(folder, f"{sha256}-train_shard_000001.tar")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_processes_fetch_each_file_once_between_them(tmp_path, folder):
    paths = make_sources(tmp_path / "source", 12)
    log = tmp_path / "log"
    finish([start_worker(WORKER, folder, 12 * SIZE, 2, seed, log, *paths) for seed in range(4)])
    assert Counter(log.read_text().split()) == dict.fromkeys(paths, 1)
    assert len(cached(folder)) == 12


def test_processes_keep_the_limit_between_them(tmp_path, folder):
    paths = make_sources(tmp_path / "source", 9)
    log = tmp_path / "log"
    limit = 4 * SIZE
    ours = Cache(folder, limit)
    processes = [start_worker(WORKER, folder, limit, 3, seed, log, *paths) for seed in range(4)]
    samples = []
    while any(process.poll() is None for process in processes):
        with ours._locked():
            samples.append(sum(os.stat(os.path.join(folder, name)).st_size for name in os.listdir(folder)))
        time.sleep(0.001)
    finish(processes)
    assert max(samples) == limit and len(samples) > 50
    # Many were evicted and fetched again.
    assert len(log.read_text().split()) > 2 * len(paths)
    assert len(cached(folder)) == 4


def test_who_waits_for_another_ones_download_gets_it_when_it_is_done(tmp_path, folder, reads):
    source = SlowSource(tmp_path / "pipe", content(0))
    sha256 = hashlib.sha256(content(0)).hexdigest()
    ours = Cache(folder, GIB)
    with in_thread(lambda: ours.fetch(source.path, sha256, SIZE)) as fetched:
        source.give_half()
        with in_thread(lambda: ours.open("never read", sha256, SIZE)) as opened:
            time.sleep(0.1)
            assert not opened and not fetched
            source.give_rest()
    with closing(opened[0]) as held:
        assert os.pread(held.descriptor, 2 * SIZE, 0) == content(0)
    assert fetched == [None] and reads == {source.path: 1}


def test_who_waits_gets_it_while_the_fetcher_reads_on(tmp_path, folder, monkeypatch):
    """Ranks of a host go on together: one that waits until another lets go of a shard waits for ever."""
    flock = fcntl.flock
    # The fetcher has the published file at once, before who waits is awake.
    share = {fcntl.LOCK_UN: fcntl.LOCK_SH}
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, kind: flock(descriptor, share.get(kind, kind)))
    source = SlowSource(tmp_path / "pipe", content(0))
    sha256 = hashlib.sha256(content(0)).hexdigest()
    ours = Cache(folder, GIB)
    with in_thread(lambda: ours.open(source.path, sha256, SIZE)) as fetched:
        source.give_half()
        with in_thread(lambda: ours.open("never read", sha256, SIZE)) as opened:
            time.sleep(0.1)
            source.give_rest()
    with closing(fetched[0]), closing(opened[0]):
        assert cached(folder) == {sha256}


def test_what_another_process_publishes_at_the_last_moment_is_not_fetched_again(tmp_path, folder, reads, monkeypatch):
    (path,) = make_sources(tmp_path / "source", 1)
    opened = cache._opened

    def publish_first(partial, flags):
        monkeypatch.setattr(cache, "_opened", opened)
        Cache(folder, GIB).fetch(path, os.path.basename(path))
        return opened(partial, flags)

    monkeypatch.setattr(cache, "_opened", publish_first)
    hold(Cache(folder, GIB), path).close()
    assert reads == {path: 1} and cached(folder) == {os.path.basename(path)}


def test_what_is_evicted_at_the_last_moment_is_fetched_again(tmp_path, folder):
    (path,) = make_sources(tmp_path / "source", 1)
    ours = Cache(folder, GIB)
    with closing(hold(ours, path)) as held:
        copy = held.path
    with open(copy, "rb") as evictor:
        fcntl.flock(evictor, fcntl.LOCK_EX)
        with in_thread(lambda: hold(ours, path)) as opened:
            time.sleep(0.1)
            assert not opened
            os.remove(copy)
            fcntl.flock(evictor, fcntl.LOCK_UN)
    with closing(opened[0]) as held:
        assert os.path.samestat(os.stat(copy), os.fstat(held.descriptor))


def test_a_killed_downloader_is_succeeded_at_once_by_who_waits(tmp_path, folder, reads):
    (path,) = make_sources(tmp_path / "source", 1)
    sha256 = os.path.basename(path)
    source = SlowSource(tmp_path / "pipe", content(0))
    downloader = start_worker(FETCH, folder, source.path, sha256, SIZE)
    source.give_half()
    with in_thread(lambda: hold(Cache(folder, SIZE), path)) as opened:
        time.sleep(0.1)
        assert not opened and cached_partials(folder) == [sha256]
        downloader.kill()
    downloader.communicate()
    with closing(opened[0]) as held:
        assert os.pread(held.descriptor, 2 * SIZE, 0) == content(0)
    assert reads == {path: 1} and cached(folder) == {sha256}


def test_what_a_killed_downloader_left_makes_room_first(tmp_path, folder):
    paths = make_sources(tmp_path / "source", 2)
    ours = Cache(folder, 2 * SIZE)
    touch(ours, paths[0])
    source = SlowSource(tmp_path / "pipe", content("abandoned"))
    abandoned = hashlib.sha256(content("abandoned")).hexdigest()
    downloader = start_worker(FETCH, folder, source.path, abandoned, SIZE)
    source.give_half()
    downloader.kill()
    downloader.communicate()
    assert cached_partials(folder) == [abandoned]
    touch(ours, paths[1])
    assert cached(folder) == {os.path.basename(path) for path in paths}


def test_downloads_under_way_count_and_are_waited_for(tmp_path, folder, impatient):
    (path,) = make_sources(tmp_path / "source", 1)
    source = SlowSource(tmp_path / "pipe", content("slow"))
    slow = hashlib.sha256(content("slow")).hexdigest()
    ours = Cache(folder, 2 * SIZE - 1)
    with in_thread(lambda: ours.fetch(source.path, slow, SIZE)) as fetched:
        source.give_half()
        with in_thread(lambda: touch(ours, path)) as waited:
            time.sleep(0.2)
            assert not waited and not fetched
            source.give_rest()
    assert (fetched, waited) == ([None], [None])
    assert cached(folder) == {os.path.basename(path)}


def test_the_least_recently_used_goes_first(tmp_path, folder):
    a, b, c, d, e = make_sources(tmp_path / "source", 5)
    ours = Cache(folder, 3 * SIZE)
    for path in (a, b, c, a, d):
        touch(ours, path)
    assert cached(folder) == {os.path.basename(path) for path in (a, c, d)}
    with closing(hold(ours, c)):
        time.sleep(0.01)
    touch(ours, e)
    assert cached(folder) == {os.path.basename(path) for path in (c, d, e)}


def test_no_more_is_evicted_than_is_needed(tmp_path, folder):
    paths = make_sources(tmp_path / "source", 4)
    ours = Cache(folder, 4 * SIZE)
    for path in paths:
        touch(ours, path)
    half = tmp_path / "half"
    half.write_bytes(content("half", SIZE // 2))
    ours.fetch(str(half), hashlib.sha256(half.read_bytes()).hexdigest())
    assert len(cached(folder)) == 4 and os.path.basename(paths[0]) not in cached(folder)


def test_what_is_held_stays(tmp_path, folder):
    a, b, c = make_sources(tmp_path / "source", 3)
    ours = Cache(folder, 2 * SIZE)
    with closing(hold(ours, a)) as held:
        for path in (b, c, b):
            touch(ours, path)
            assert cached(folder) == {os.path.basename(a), os.path.basename(path)}
        assert hashlib.sha256(os.pread(held.descriptor, 2 * SIZE, 0)).hexdigest() == os.path.basename(a)
    touch(ours, c)
    assert cached(folder) == {os.path.basename(b), os.path.basename(c)}


def test_no_room_beside_what_is_held_says_how_much_is_missing(tmp_path, folder, impatient):
    (path,) = make_sources(tmp_path / "source", 1)
    ours = Cache(folder, GIB)
    # A file of 1 GiB that takes no room on the disk.
    big = "0" * 64
    with open(os.path.join(folder, f"{big}-big.tar"), "wb") as stream:
        stream.truncate(GIB)
    with (
        closing(ours.open("never read", big, GIB)),
        pytest.raises(
            StorageError,
            match=rf"no room for {path} in the cache folder {folder}: the limit is 1\.000 GiB, files in use take "
            r"1\.000 GiB, with this one 1\.000 GiB would be needed; set DIST_DIFFUSION_CACHE_GIB higher, or "
            r"DIST_DIFFUSION_CACHE to a folder on a larger disk",
        ),
    ):
        hold(ours, path)
    assert cached(folder) == {big}


def test_a_file_larger_than_the_limit_evicts_nothing(tmp_path, folder):
    a, b = make_sources(tmp_path / "source", 2)
    touch(Cache(folder, SIZE), a)
    with pytest.raises(StorageError, match=f"no room for {b} .* files in use take 0.000 GiB"):
        hold(Cache(folder, SIZE - 1), b)
    assert cached(folder) == {os.path.basename(a)}


def test_room_that_is_left_a_little_later_is_enough(tmp_path, folder):
    a, b = make_sources(tmp_path / "source", 2)
    ours = Cache(folder, SIZE)
    held = hold(ours, a)
    with in_thread(lambda: touch(ours, b)) as fetched:
        time.sleep(0.1)
        assert not fetched
        held.close()
    assert fetched == [None] and cached(folder) == {os.path.basename(b)}


def test_files_of_others_are_left_alone_and_do_not_count(tmp_path, folder):
    os.mkdir(folder)
    others = ["notes.txt", ".tmp-1234abcd-model.safetensors", "0" * 63, "0" * 64, f"{'0' * 64}.tar", f"{'g' * 64}-a"]
    for name in others:
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(bytes(SIZE))
    os.makedirs(os.path.join(folder, f"{'0' * 64}-folder"))
    before = sorted(os.listdir(folder))
    ours = Cache(folder, 2 * SIZE)
    for path in make_sources(tmp_path / "source", 3):
        touch(ours, path)
    after = os.listdir(folder)
    assert set(before) <= set(after) and len(after) == len(before) + 3


@pytest.mark.parametrize("wrong", ["damaged", "short", "long"])
def test_a_damaged_source_is_read_twice_and_named(tmp_path, folder, reads, caplog, wrong):
    data = {"damaged": content(1), "short": content(0)[:-1], "long": content(0) + bytes(3 << 20)}[wrong]
    path = tmp_path / "shard-000003.tar"
    path.write_bytes(data)
    sha256 = hashlib.sha256(content(0)).hexdigest()
    with pytest.raises(
        StorageError,
        match=rf"{path} is damaged: sha256 [0-9a-f]{{64}} of \d+ bytes, but the manifest says {sha256} of 300000 bytes "
        r"\(it was read 2 times\); restore that file, or its manifest if the file is right",
    ):
        Cache(folder, GIB).open(str(path), sha256, SIZE)
    assert reads == {str(path): 2} and cached(folder) == set()
    assert [record.message.startswith(f"{path} arrived damaged") for record in caplog.records] == [True, True]


@pytest.mark.parametrize("wrong", [content(1), content(0) + b"more", b""], ids=["damaged", "long", "empty"])
def test_what_arrives_damaged_is_fetched_again(tmp_path, folder, monkeypatch, wrong):
    (path,) = make_sources(tmp_path / "source", 1)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(wrong)
    to_read = [str(damaged), path]
    open_read = files.open_read
    monkeypatch.setattr(files, "open_read", lambda _: open_read(to_read.pop(0)))
    with closing(Cache(folder, GIB).open(path, os.path.basename(path), SIZE)) as held:
        assert os.pread(held.descriptor, 2 * SIZE, 0) == content(0)
    assert to_read == []


def test_a_source_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path, folder, monkeypatch):
    absent = str(tmp_path / "absent.tar")
    for size in (None, SIZE):
        with pytest.raises(StorageError, match=f"cannot read {absent}: No such file or directory; check the path"):
            Cache(folder, GIB).open(absent, "0" * 64, size)
    assert cached(folder) == set()


def test_a_download_that_breaks_off_leaves_nothing(tmp_path, folder, monkeypatch):
    (path,) = make_sources(tmp_path / "source", 1)

    class Broken(io.BytesIO):
        def readinto(self, buffer):
            if self.tell():
                raise StorageError(f"cannot read {path}: the connection was reset")
            return super().readinto(buffer[:1000])

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="the connection was reset"):
        patch.setattr(files, "open_read", lambda _: Broken(content(0)))
        hold(Cache(folder, GIB), path)
    assert cached(folder) == set()
    hold(Cache(folder, GIB), path).close()


def test_a_damaged_file_is_discarded_and_fetched_anew(tmp_path, folder, reads, caplog):
    (path,) = make_sources(tmp_path / "source", 1)
    sha256 = os.path.basename(path)
    ours = Cache(folder, GIB)
    with closing(hold(ours, path)) as held:
        with open(held.path, "r+b") as stream:
            stream.write(b"flipped")
        ours.discard(path, sha256)
        assert caplog.messages == [f"the copy of {path} in the cache was damaged: removed {held.path}"]
        with closing(hold(ours, path)) as fresh:
            assert os.pread(fresh.descriptor, 2 * SIZE, 0) == content(0)
        assert os.pread(held.descriptor, 7, 0) == b"flipped"
    assert reads == {path: 2} and cached(folder) == {sha256}
    ours.discard("of which there is none", "0" * 64)


def test_a_file_that_was_cut_is_fetched_anew(tmp_path, folder, reads):
    (path,) = make_sources(tmp_path / "source", 1)
    ours = Cache(folder, GIB)
    with closing(hold(ours, path)) as held:
        os.truncate(held.path, 0)
    with closing(hold(ours, path)) as held:
        assert os.pread(held.descriptor, 2 * SIZE, 0) == content(0)
    assert reads == {path: 2}


def test_a_full_disk_says_what_to_do(tmp_path, folder, monkeypatch):
    (path,) = make_sources(tmp_path / "source", 1)
    ours = Cache(folder, 3 * GIB)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(
        StorageError,
        match=rf"the disk of the cache folder {folder} is full \(No space left on device\): free space there, set "
        r"DIST_DIFFUSION_CACHE_GIB lower than 3\.000 GiB, or DIST_DIFFUSION_CACHE to a folder on another disk",
    ):
        hold(ours, path)
    assert cached(folder) == set()


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"cannot use the cache folder {tmp_path}/file/cache: Not a directory"):
        Cache(str(tmp_path / "file" / "cache"), GIB)


class TestFromEnvironment:
    @pytest.fixture(autouse=True)
    def fresh(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.delenv("DIST_DIFFUSION_CACHE", raising=False)
        monkeypatch.delenv("DIST_DIFFUSION_CACHE_GIB", raising=False)
        cache.from_environment.cache_clear()
        yield
        cache.from_environment.cache_clear()

    def test_the_variables_are_obeyed(self, tmp_path, monkeypatch):
        monkeypatch.setenv("DIST_DIFFUSION_CACHE", str(tmp_path / "mine"))
        monkeypatch.setenv("DIST_DIFFUSION_CACHE_GIB", "0.5")
        ours = cache.from_environment()
        assert (ours.folder, ours.limit) == (str(tmp_path / "mine"), GIB // 2)
        assert cache.from_environment() is ours

    def test_the_default_is_the_users_own_folder_and_half_of_the_disk(self, tmp_path, monkeypatch):
        usage = os.statvfs(tmp_path)
        free = usage.f_bavail * usage.f_frsize
        ours = cache.from_environment()
        assert ours.folder == str(tmp_path / f"dist_diffusion-cache-{os.getuid()}")
        assert stat.S_IMODE(os.stat(ours.folder).st_mode) == 0o700
        assert ours.limit == pytest.approx(free / 2, rel=0.1)

    def test_the_default_limit_does_not_shrink_as_the_cache_fills(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(1000))
        ours = cache.from_environment()
        assert ours.limit == 500
        with open(os.path.join(ours.folder, f"{'0' * 64}-a"), "wb") as stream:
            stream.write(bytes(400))
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(600))
        assert Cache(ours.folder, None).limit == 500

    @pytest.mark.parametrize("given", ["much", "0", "-1", "nan", "inf", "1e999"])
    def test_a_bad_limit_is_named(self, monkeypatch, given):
        monkeypatch.setenv("DIST_DIFFUSION_CACHE_GIB", given)
        with pytest.raises(ConfigError, match=f"DIST_DIFFUSION_CACHE_GIB='{given}' must be a number of GiB above 0"):
            cache.from_environment()

    def test_a_remote_folder_is_refused(self, monkeypatch):
        monkeypatch.setenv("DIST_DIFFUSION_CACHE", "gs://bucket/cache")
        with pytest.raises(ConfigError, match="DIST_DIFFUSION_CACHE=gs://bucket/cache must be a folder on a disk"):
            cache.from_environment()

    def test_another_users_folder_is_not_trusted(self, monkeypatch):
        another = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: another)
        with pytest.raises(StorageError, match=f"cache-{another} belongs to another user: set DIST_DIFFUSION_CACHE"):
            cache.from_environment()
