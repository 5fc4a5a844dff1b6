"""The images of a step from its rows: in the loader's own thread, or by decode processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dist_diffusion.data.decode_worker import RECORD
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.latents import LatentFormat, read_latent
from dist_diffusion.data.pool import DecodePool, PoolDecoding
from dist_diffusion.data.reader import Reader
from dist_diffusion.data.views import Views, see


class Decoding(Protocol):
    """One step: its images, uint8 [n, H, W, 3] (latents: float32 [n, C, H, W]), and, by their number in the step, why
    some of them could not be decoded.
    """

    images: np.ndarray
    failed: dict[int, str]


class Decoder(Protocol):
    """Turns the rows of a step into images. One thread at a time."""

    def begin(self, rows: Sequence[int], views: Views) -> Decoding:
        """Start on a step. DataError or StorageError names what cannot be read."""

    def is_done(self, decoding: Decoding) -> bool:
        """Whether finishing needs no waiting."""

    def finish(self, decoding: Decoding) -> None:
        """Wait until its images are there."""

    def decode(self, row: int, views: Views, i: int, out: np.ndarray) -> None:
        """One sample now, seen as number i of the views. UndecodableError where it cannot be."""

    def forget_files(self) -> None:
        """Some of the shards' files are no longer held."""

    def close(self) -> None:
        """End what runs."""


@dataclass
class _Done:
    """A step that was decoded at once."""

    images: np.ndarray
    failed: dict[int, str]


class ThreadDecoder:
    """Decodes in the thread that asks."""

    def __init__(self, reader: Reader, size: int, cancelled: Callable[[], bool]) -> None:
        self._reader, self._size, self._cancelled = reader, size, cancelled

    def begin(self, rows: Sequence[int], views: Views) -> Decoding:
        """All of it, at once; of a cancelled step the rest is left as it is."""
        done = _Done(self._room(len(rows)), {})
        for i, row in enumerate(rows):
            if self._cancelled():
                break
            try:
                self.decode(row, views, i, done.images[i])
            except UndecodableError as error:
                done.failed[i] = str(error)
        return done

    def is_done(self, decoding: Decoding) -> bool:
        """Always."""
        return True

    def finish(self, decoding: Decoding) -> None:
        """Nothing is left to do."""

    def decode(self, row: int, views: Views, i: int, out: np.ndarray) -> None:
        """One sample."""
        crop = None if views.crops is None else views.crops[i]
        see(self._reader.image_bytes(row), crop, bool(views.flips[i]), out)

    def forget_files(self) -> None:
        """The reader's own are all there are."""

    def close(self) -> None:
        """Nothing runs."""

    def _room(self, samples: int) -> np.ndarray:
        return np.empty((samples, self._size, self._size, 3), dtype=np.uint8)


class LatentDecoder(ThreadDecoder):
    """Latents, which are read and not decoded: float32 [n, C, H, W], scaled. Never mirrored or cropped."""

    def __init__(self, reader: Reader, latents: LatentFormat, scale: float, cancelled: Callable[[], bool]) -> None:
        super().__init__(reader, latents.shape[1], cancelled)
        self._latents, self._scale = latents, scale

    def decode(self, row: int, views: Views, i: int, out: np.ndarray) -> None:
        """One sample."""
        out[...] = read_latent(self._reader.image_bytes(row), self._latents)
        out *= self._scale

    def _room(self, samples: int) -> np.ndarray:
        return np.empty((samples, *self._latents.shape), dtype=np.float32)


class PoolDecoder(ThreadDecoder):
    """Hands steps to decode processes, and does again itself what these could not do."""

    def __init__(
        self,
        reader: Reader,
        index: np.ndarray,
        size: int,
        samples: int,
        num_workers: int,
        cancelled: Callable[[], bool],
    ) -> None:
        super().__init__(reader, size, cancelled)
        self._index = index
        self._pool = DecodePool(num_workers, samples, size)

    def begin(self, rows: Sequence[int], views: Views) -> Decoding:
        """Hand it out."""
        found = self._index[np.asarray(rows)]
        records = np.zeros(len(rows), dtype=RECORD)
        for name in ("offset", "length", "crc32", "shard"):
            records[name] = found[name]
        records["flip"] = views.flips
        if views.crops is not None:
            records["cropped"], records["crop"] = True, views.crops
        paths = {number: self._reader.files.path(number) for number in set(found["shard"].tolist())}
        return self._pool.begin(records, paths, self._cancelled)

    def is_done(self, decoding: Decoding) -> bool:
        """Whether all answers are in."""
        assert isinstance(decoding, PoolDecoding)
        return self._pool.is_done(decoding)

    def finish(self, decoding: Decoding) -> None:
        """Wait for the answers."""
        assert isinstance(decoding, PoolDecoding)
        self._pool.finish(decoding, self._cancelled)

    def forget_files(self) -> None:
        """The processes have some open too."""
        self._pool.forget_files()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
