"""A rank's share of every step, read and decoded ahead of the step by one thread."""

import itertools
import queue
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order
from dist_diffusion.data.reader import Reader
from dist_diffusion.draws import Draw, digest, uniform
from dist_diffusion.errors import DataError

PREFETCH_STEPS = 4


@dataclass(frozen=True)
class Batch:
    """One step's samples of one rank, n of them, in the order of its slots."""

    step: int
    ids: np.ndarray
    """Rows of index.npy, int64 [n]."""
    images: torch.Tensor
    """uint8 [n, 3, H, W]."""
    labels: torch.Tensor
    """int64 [n]."""
    draws: dict[str, torch.Tensor]
    """Each task draw by its name, stacked: [n, ...]."""
    digest: int
    """Sum of the samples' digests mod 2**64; summed over the ranks it is the step's batch digest."""


@dataclass(frozen=True)
class _Sample:
    row: int
    image: np.ndarray
    values: list[torch.Tensor]
    digest: int


class Samples:
    """One sample as step k sees it: a pure function of (manifest, options, draws, seed, row, position)."""

    def __init__(
        self, manifest: Manifest, index: np.ndarray, options: DataOptions, draws: Sequence[Draw], seed: int
    ) -> None:
        self._reader = Reader(manifest, index)
        self._options = options
        self._draws = draws
        self._seed = seed

    def at(self, row: int, position: int) -> _Sample:
        """The sample of a row at position j of the run. DataError names shard and sample where it cannot be decoded."""
        crop = self._crop_uniforms(position)
        flip = self._options.random_flip and uniform(self._seed, "flip", position) < 0.5
        values = [draw.at(self._seed, position) for draw in self._draws]
        return _Sample(row, self._image(row, crop, flip), values, self._digest(row, crop, flip, values))

    def _crop_uniforms(self, position: int) -> tuple[float, float, float] | None:
        if not self._options.random_crop:
            return None
        size, left, top = (uniform(self._seed, stream, position) for stream in ("crop_size", "crop_x", "crop_y"))
        return size, left, top

    def _image(self, row: int, crop: tuple[float, float, float] | None, flip: bool) -> np.ndarray:
        """uint8 [3, H, W]."""
        try:
            image = images.decode(self._reader.image_bytes(row))
        except images.UndecodableError as error:
            raise DataError(f"{self._reader.describe(row)} cannot be decoded: {error}") from error
        size = self._options.image_size
        square = images.fit(image, size) if crop is None else images.random_crop(image, size, crop)
        return images.to_uint8(square, flip).transpose(2, 0, 1)

    def _digest(
        self, row: int, crop: tuple[float, float, float] | None, flip: bool, values: Sequence[torch.Tensor]
    ) -> int:
        shard, within = self._reader.locate(row)
        return digest(
            [
                bytes.fromhex(shard.sha256),
                struct.pack("<Q", within),
                b"" if crop is None else struct.pack("<3d", *crop),
                struct.pack("<?", flip),
                *(draw.digest_bytes(value) for draw, value in zip(self._draws, values, strict=True)),
            ]
        )


class Loader:
    """Iterates over a rank's batches from `start_step` on, for ever.

    The thread's error is raised by the `next` that would have returned the failed step, and by every later one.
    Close it (or use it as a context manager) to end the thread.
    """

    def __init__(
        self,
        manifest: Manifest,
        index: np.ndarray,
        order: Order,
        options: DataOptions,
        draws: Sequence[Draw],
        seed: int,
        slots: range,
        start_step: int,
    ) -> None:
        self._samples = Samples(manifest, index, options, draws, seed)
        self._labels = index["label"]
        self._order = order
        self._names = [draw.name for draw in draws]
        self._slots = slots
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=PREFETCH_STEPS)
        self._error: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(start_step,), name="data-loader", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Batch:
        assert not self._closed.is_set(), "the loader is closed"
        if self._error is None:
            item = self._ready.get()
            if isinstance(item, Batch):
                return item
            self._error = item
        raise self._error

    def close(self) -> None:
        """End the thread; at most one sample's work is waited for."""
        self._closed.set()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.01)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, start_step: int) -> None:
        try:
            for step in itertools.count(start_step):
                rows = self._order.ids(step)
                samples = []
                for slot in self._slots:
                    if self._closed.is_set():
                        return
                    samples.append(self._samples.at(int(rows[slot]), step * self._order.batch + slot))
                self._ready.put(self._collate(step, samples))
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            self._ready.put(error)

    def _collate(self, step: int, samples: Sequence[_Sample]) -> Batch:
        ids = np.array([sample.row for sample in samples], dtype=np.int64)
        # numpy stacks in this one thread; torch would start a second team of OpenMP threads beside the training's.
        columns = zip(*(sample.values for sample in samples), strict=True)
        stacked = [torch.from_numpy(np.stack([value.numpy() for value in column])) for column in columns]
        return Batch(
            step=step,
            ids=ids,
            images=torch.from_numpy(np.stack([sample.image for sample in samples])),
            labels=torch.from_numpy(self._labels[ids].astype(np.int64)),
            draws=dict(zip(self._names, stacked, strict=True)),
            digest=sum(sample.digest for sample in samples) % 2**64,
        )

    def _drain(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()
