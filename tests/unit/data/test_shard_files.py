"""Shards of an object store: held while they are needed, and the same batches whatever the cache does."""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import manifest, reader, shards, sources
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, rank_slots
from dist_diffusion.data.reader import Reader
from dist_diffusion.data.shard_files import UNANNOUNCED_SHARDS, CachedShards
from dist_diffusion.errors import StorageError
from dist_diffusion.storage import cache
from dist_diffusion.storage.cache import Cache

SEED, BATCH = 7, 6
OPTIONS = DataOptions(image_size=8, random_flip=True)


@pytest.fixture
def many(class_tree: Path, tmp_path: Path) -> Manifest:
    """60 images in 12 shards."""
    source = sources.open_source(str(class_tree))
    return shards.make(source, str(tmp_path / "many"), 5, seed=0, say=lambda _: None)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what is fetched."""
    names: list[str] = []
    download = cache._download

    def noted(path: str, descriptor: int, sha256: str, size: int) -> None:
        names.append(Path(path).name)
        download(path, descriptor, sha256, size)

    monkeypatch.setattr(cache, "_download", noted)
    yield names


def _held(files: CachedShards) -> set[int]:
    return set(files._held)


def test_what_is_announced_is_held_and_fetched_once(many: Manifest, tmp_path: Path, fetched: list[str]) -> None:
    with closing(CachedShards(many, Cache(str(tmp_path / "cache"), 1 << 30))) as files:
        assert not files.announce((0, 1, 2), (3, 4))
        assert _held(files) == {0, 1, 2}
        for number in (0, 1, 2, 7, 8, 9, 0, 1, 2):
            assert Path(files.path(number)).stat().st_size == many.shards[number].bytes
        # Others, of a block that is over, do not push out what is in use.
        assert {0, 1, 2} < _held(files) and len(_held(files)) == 3 + UNANNOUNCED_SHARDS
        assert files.announce((3, 4), ())
        assert _held(files) == {3, 4}
    assert sorted(fetched) == sorted(many.shards[number].name for number in (0, 1, 2, 3, 4, 7, 8, 9))


def test_who_announces_nothing_holds_two(many: Manifest, tmp_path: Path) -> None:
    with closing(CachedShards(many, Cache(str(tmp_path / "cache"), 1 << 30))) as files:
        for number in range(12):
            files.descriptor(number)
            assert len(_held(files)) <= UNANNOUNCED_SHARDS and number in _held(files)


def test_a_copy_that_was_damaged_is_renewed(many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = manifest.index(many)
    with closing(CachedShards(many, Cache(str(tmp_path / "cache"), 1 << 30))) as files:
        monkeypatch.setattr(reader, "shard_files", lambda _: files)
        local = Reader(many, rows)
        expected = local.image_bytes(3)
        copy = Path(files.path(0))
        copy.write_bytes(bytes(many.shards[0].bytes))
        assert local.image_bytes(3) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streams", [1, 2, 6])
def test_two_ranks_and_a_small_cache_give_the_same_batches(
    many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str], streams: int, workers: int
) -> None:
    """Room for what the ranks read at once and hardly more: shards come and go, also under decode processes."""
    rows = manifest.index(many)
    order = Order(many.identities, SEED, streams=streams, batch=BATCH, block=4)

    def load(world: int, rank: int) -> Loader:
        options = dataclasses.replace(OPTIONS, workers=workers)
        return Loader(many, rows, order, options, (), SEED, rank_slots(BATCH, world, rank), 0)

    with load(1, 0) as alone:
        expected = [batch.digest for batch in itertools.islice(alone, 25)]
    every = range(BATCH)
    needed = [{*order.shards_of(step, every), *order.shards_of(step + 1, every)} for step in range(30)]
    read_at_once = max(sum(many.shards[number].bytes for number in numbers) for numbers in needed)
    limit = read_at_once + 2 * max(shard.bytes for shard in many.shards)
    monkeypatch.setattr(cache, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(reader, "shard_files", lambda made: CachedShards(made, Cache(str(tmp_path / "cache"), limit)))
    with load(2, 0) as first, load(2, 1) as second:
        pairs = zip(first, second, strict=True)
        assert [(a.digest + b.digest) % 2**64 for a, b in itertools.islice(pairs, 25)] == expected
    assert len(fetched) > len(many.shards) or streams == 6  # these read from all shards at once


def test_closing_waits_for_no_fetch_that_has_not_begun(
    many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time of 0.3 s each: all twelve would take 1.8 s."""
    order = Order(many.identities, SEED, streams=6, batch=BATCH, block=16)
    begun: list[str] = []
    download = cache._download

    def slow(path: str, descriptor: int, sha256: str, size: int) -> None:
        begun.append(path)
        time.sleep(0.3)
        download(path, descriptor, sha256, size)

    monkeypatch.setattr(cache, "_download", slow)
    monkeypatch.setattr("dist_diffusion.data.shard_files.SIMULTANEOUS_FETCHES", 2)
    files: list[CachedShards] = []

    def cached(made: Manifest) -> CachedShards:
        files.append(CachedShards(made, Cache(str(tmp_path / "cache"), 1 << 30)))
        return files[-1]

    monkeypatch.setattr(reader, "shard_files", cached)
    loader = Loader(many, manifest.index(many), order, OPTIONS, (), SEED, range(BATCH), 0)
    while not begun:
        time.sleep(0.01)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 1 and len(begun) <= 4
    assert not _held(files[0])


def test_a_cache_that_is_too_small_says_so(many: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(many.identities, SEED, streams=6, batch=BATCH, block=4)
    limit = 2 * max(shard.bytes for shard in many.shards)
    monkeypatch.setattr(cache, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(reader, "shard_files", lambda made: CachedShards(made, Cache(str(tmp_path / "cache"), limit)))
    with (
        Loader(many, manifest.index(many), order, OPTIONS, (), SEED, range(BATCH), 0) as loader,
        pytest.raises(StorageError, match=r"no room for .* set DIST_DIFFUSION_CACHE_GIB higher"),
    ):
        next(loader)
