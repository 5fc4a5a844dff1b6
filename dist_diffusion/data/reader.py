"""The bytes of a sample by its row of index.npy: one pread, checked against its crc32."""

import os
import zlib
from functools import lru_cache

import numpy as np

from dist_diffusion.data.manifest import Manifest, Shard
from dist_diffusion.errors import DataError, StorageError
from dist_diffusion.storage import files

# More than the 256 streams of a default order, fewer than the usual 1,024 open files a process may have.
MAX_OPEN_SHARDS = 384


class _OpenFile:
    """A descriptor that closes when the cache forgets it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Reader:
    """Reads samples of local shards. One thread at a time."""

    def __init__(self, manifest: Manifest, index: np.ndarray) -> None:
        self._manifest = manifest
        self._index = index
        self._first_rows = np.cumsum([0, *(shard.samples for shard in manifest.shards)]).tolist()
        self._open = lru_cache(maxsize=MAX_OPEN_SHARDS)(self._open_shard)

    def image_bytes(self, row: int) -> bytes:
        """A sample's image file as it was written. DataError names the shard and sample where the bytes differ."""
        shard, offset, length, _, crc32 = self._index[row].item()
        try:
            data = os.pread(self._open(shard).number, length, offset)
        except OSError as error:
            raise StorageError(f"cannot read shard {self._path(shard)}: {error}") from error
        if len(data) != length or zlib.crc32(data) != crc32:
            raise DataError(f"{self.describe(row)} is damaged (its crc32 is not the index's): restore the shard")
        return data

    def locate(self, row: int) -> tuple[Shard, int]:
        """A sample's shard, and its index within the shard."""
        number = int(self._index["shard"][row])
        return self._manifest.shards[number], row - self._first_rows[number]

    def describe(self, row: int) -> str:
        """Where a sample lies, for messages."""
        shard, within = self.locate(row)
        path = files.join(self._manifest.folder, shard.name)
        return f"sample {within} of shard {path} (byte {int(self._index['offset'][row])})"

    def _path(self, number: int) -> str:
        return files.join(self._manifest.folder, self._manifest.shards[number].name)

    def _open_shard(self, number: int) -> _OpenFile:
        return _OpenFile(self._path(number))
