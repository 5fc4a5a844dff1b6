"""The bytes of a sample by its row of index.npy: one pread, checked against its crc32."""

import os
import tarfile
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dist_diffusion.data.manifest import Manifest, Shard
from dist_diffusion.data.shard_files import MAX_OPEN_SHARDS, OpenFile, ShardFiles, shard_files
from dist_diffusion.errors import DataError, StorageError
from dist_diffusion.storage import files

TAR_BLOCK = 512


def read_checked(descriptor: int, offset: int, length: int, crc32: int) -> bytes | None:
    """The bytes there; None where they are fewer, or not the ones that the crc32 is of."""
    data = os.pread(descriptor, length, offset)
    return data if len(data) == length and zlib.crc32(data) == crc32 else None


class PathReader:
    """Reads by path, keeping files open. For processes that are told where each sample lies."""

    def __init__(self) -> None:
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS)(OpenFile)

    def read(self, path: str, offset: int, length: int, crc32: int) -> bytes | None:
        """As `read_checked`. OSError where the file cannot be read."""
        return read_checked(self._open(path).number, offset, length, crc32)

    def expect(self, path: str, offset: int, length: int) -> None:
        """Has the system read ahead, where it can: a disk or network file system then waits once for many samples."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._open(path).number, offset, length, os.POSIX_FADV_WILLNEED)

    def close_all(self) -> None:
        """Give the files back: what replaced them, or freed their space, counts from now on."""
        self._open.cache_clear()


class Reader:
    """Reads samples of a shard set; a remote set's shards are fetched into this host's cache. One thread at a time."""

    def __init__(self, manifest: Manifest, index: np.ndarray) -> None:
        self._manifest = manifest
        self._index = index
        self._first_rows = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
        self._sha256s = np.array([np.void(bytes.fromhex(shard.sha256)) for shard in manifest.shards])
        self.files: ShardFiles = shard_files(manifest)

    def image_bytes(self, row: int) -> bytes:
        """A sample's image file as it was written. DataError names the shard and sample where the bytes differ."""
        data = self._read(row)
        if data is None and self.files.renew(int(self._index["shard"][row])):
            data = self._read(row)
        if data is None:
            raise DataError(f"{self.describe(row)} is damaged (its crc32 is not the index's): restore the shard")
        return data

    def locate(self, row: int) -> tuple[Shard, int]:
        """A sample's shard, and its index within the shard."""
        number = int(self._index["shard"][row])
        return self._manifest.shards[number], row - int(self._first_rows[number])

    def places(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each row, the shard's sha256 (V32 [n]) and the index within the shard (int64 [n])."""
        numbers = self._index["shard"][np.asarray(rows)]
        return self._sha256s[numbers], np.asarray(rows) - self._first_rows[numbers]

    def describe(self, row: int) -> str:
        """Where a sample lies, for messages."""
        shard, within = self.locate(row)
        path = files.join(self._manifest.folder, shard.name)
        return f"sample {within} of shard {path} (byte {int(self._index['offset'][row])})"

    def key(self, row: int) -> str:
        """A sample's key: the name of its member in the tar, up to the first dot of the file's own name."""
        number, offset = int(self._index["shard"][row]), int(self._index["offset"][row])
        header = os.pread(self.files.descriptor(number), TAR_BLOCK, offset - TAR_BLOCK)
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name
        except tarfile.HeaderError:
            return "?"
        folder, slash, file = name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    def close(self) -> None:
        """Let go of the shards."""
        self.files.close()

    def _read(self, row: int) -> bytes | None:
        number, offset, length, _, crc32 = self._index[row].item()
        try:
            return read_checked(self.files.descriptor(number), offset, length, crc32)
        except OSError as error:
            path = files.join(self._manifest.folder, self._manifest.shards[number].name)
            raise StorageError(f"cannot read shard {path}: {error}") from error
