"""The shards of a set as local files: where they are, or in this host's cache."""

import os
import resource
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Protocol

from dist_diffusion.data.manifest import Manifest
from dist_diffusion.storage import cache as caches
from dist_diffusion.storage import files
from dist_diffusion.storage.cache import Cache, Held

# More than the 256 streams of a default order, fewer than the usual 1,024 open files a process may have.
MAX_OPEN_SHARDS = 384
OPEN_FILES = 8192
SIMULTANEOUS_FETCHES = 8
UNANNOUNCED_SHARDS = 2
"""Cached shards held beside the announced ones: all there are for who reads on from the one to the next and never says
what comes, else of a block that is over, whose samples a replacement was looked for among."""


class ShardFiles(Protocol):
    """Shards by their numbers in the manifest. One thread at a time."""

    wants_announcements: bool
    """Whether it helps to say what comes."""

    def path(self, number: int) -> str:
        """A local path, good until the shard is no longer announced."""

    def descriptor(self, number: int) -> int:
        """Open for reading. OSError or StorageError names the path."""

    def announce(self, now: Sequence[int], soon: Iterable[int]) -> bool:
        """What is read from now on, and what comes after. True where files were let go of."""

    def renew(self, number: int) -> bool:
        """A shard turned out damaged; True where there may now be a better copy."""

    def abandon(self) -> None:
        """Fetch no more; who waits for that gets an error. From any thread."""

    def close(self) -> None:
        """Let go of all."""


def shard_files(manifest: Manifest) -> ShardFiles:
    """Of the set, wherever it lies."""
    if files.is_remote(manifest.folder):
        return CachedShards(manifest, caches.from_environment())
    return LocalShards(manifest)


class OpenFile:
    """A descriptor that closes when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def allow_open_files() -> None:
    """More than the usual 1,024, as far as the system lets this process: every shard in use is held open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class LocalShards:
    """Shards that are files already."""

    wants_announcements = False

    def __init__(self, manifest: Manifest) -> None:
        self._paths = [files.join(manifest.folder, shard.name) for shard in manifest.shards]
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS)(OpenFile)

    def path(self, number: int) -> str:
        """Where it lies."""
        return self._paths[number]

    def descriptor(self, number: int) -> int:
        """Open for reading."""
        return self._open(self._paths[number]).number

    def announce(self, now: Sequence[int], soon: Iterable[int]) -> bool:
        """Nothing to prepare."""
        return False

    def renew(self, number: int) -> bool:
        """There is no other copy."""
        return False

    def abandon(self) -> None:
        """Nothing is fetched."""

    def close(self) -> None:
        """Close all."""
        self._open.cache_clear()


class CachedShards:
    """Shards of an object store, fetched whole; those in use are held so that no other process evicts them."""

    wants_announcements = True

    def __init__(self, manifest: Manifest, cache: Cache) -> None:
        allow_open_files()
        self._manifest = manifest
        self._cache = cache
        self._held: dict[int, Held] = {}
        self._announced: frozenset[int] = frozenset()
        self._fetches = ThreadPoolExecutor(SIMULTANEOUS_FETCHES, thread_name_prefix="shard-fetch")
        self._coming: dict[int, Future[None]] = {}

    def path(self, number: int) -> str:
        """Its place in the cache."""
        return self._hold(number).path

    def descriptor(self, number: int) -> int:
        """Of the file in the cache."""
        return self._hold(number).descriptor

    def announce(self, now: Sequence[int], soon: Iterable[int]) -> bool:
        """Let go of the others, fetch at once what is missing of `now`, and in the background what comes `soon`."""
        others = [number for number in self._held if number not in now]
        for number in others:
            self._held.pop(number).close()
        self._announced = frozenset(now)
        missing = [number for number in now if number not in self._held]
        list(self._fetches.map(self._open, missing))
        self._coming = {number: coming for number, coming in self._coming.items() if not coming.done()}
        for number in soon:
            if number not in self._held and number not in self._coming:
                self._coming[number] = self._fetches.submit(self._fetch, number)
        return bool(others)

    def renew(self, number: int) -> bool:
        """Have it fetched again by the next that needs it."""
        if number in self._held:
            self._held.pop(number).close()
        shard = self._manifest.shards[number]
        self._cache.discard(self._path(number), shard.sha256)
        return True

    def abandon(self) -> None:
        """What has not begun is not fetched."""
        self._fetches.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of all; a fetch that has begun is waited for."""
        self._fetches.shutdown(cancel_futures=True)
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _hold(self, number: int) -> Held:
        if number not in self._held:
            others = [held for held in self._held if held not in self._announced]
            if len(others) >= UNANNOUNCED_SHARDS:
                self._held.pop(others[0]).close()
            self._open(number)
        return self._held[number]

    def _open(self, number: int) -> None:
        shard = self._manifest.shards[number]
        self._held[number] = self._cache.open(self._path(number), shard.sha256, shard.bytes)

    def _fetch(self, number: int) -> None:
        shard = self._manifest.shards[number]
        # What fails here is asked for again, and then told, when it is needed.
        self._cache.fetch(self._path(number), shard.sha256, shard.bytes)

    def _path(self, number: int) -> str:
        return files.join(self._manifest.folder, self._manifest.shards[number].name)
