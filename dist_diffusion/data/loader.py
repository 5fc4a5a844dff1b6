"""A rank's share of every step, read and decoded ahead of the step."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data.decoding import Decoder, Decoding, LatentDecoder, PoolDecoder, ThreadDecoder
from dist_diffusion.data.digests import heads
from dist_diffusion.data.latents import latent_format
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order
from dist_diffusion.data.reader import Reader
from dist_diffusion.data.replacement import Replaced, Replacer
from dist_diffusion.data.views import Views, views_at
from dist_diffusion.draws import Draw, digest, framed

PREFETCH_STEPS = 4
STEPS_IN_WORK = 2
"""Steps that decode processes may have before them: they go on while the next one is handed out."""


@dataclass(frozen=True)
class Batch:
    """One step's samples of one rank, n of them, in the order of its slots."""

    step: int
    ids: np.ndarray
    """Rows of index.npy, int64 [n]."""
    images: torch.Tensor
    """uint8 [n, 3, H, W], the channels last in memory, or scaled latents, float32 [n, C, H, W]."""
    labels: torch.Tensor
    """int64 [n]."""
    draws: dict[str, torch.Tensor]
    """Each task draw by its name, stacked: [n, ...]."""
    digest: int
    """Sum of the samples' digests mod 2**64; summed over the ranks it is the step's batch digest."""
    replaced: tuple[Replaced, ...] = ()
    """Samples that could not be decoded, and what stands for them."""


@dataclass
class _Begun:
    """A step while it is decoded."""

    step: int
    rows: list[int]
    positions: range
    views: Views
    decoding: Decoding


class Loader:
    """Iterates over a rank's batches from `start_step` on, for ever.

    The thread's error is raised by the `next` that would have returned the failed step, and by every later one.
    Close it (or use it as a context manager) to end the thread and the decode processes.
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
        self._closed = threading.Event()
        self._reader = Reader(manifest, index)
        self._decoder = self._make_decoder(manifest, index, options, len(slots))
        self._replacer = Replacer(options, order, self._reader, self._decoder)
        self._labels = index["label"]
        self._order, self._options, self._draws, self._seed, self._slots = order, options, draws, seed, slots
        self._announced_until = start_step
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=PREFETCH_STEPS)
        self._error: BaseException | None = None
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

    @property
    def is_ready(self) -> bool:
        """Whether `next` has something at once, be it an error."""
        return self._error is not None or not self._ready.empty()

    def close(self) -> None:
        """End the thread; at most one sample's work is waited for, and fetches of shards that have begun."""
        self._closed.set()
        self._reader.files.abandon()
        while self._thread.is_alive():
            self._drain()
            self._thread.join(timeout=0.01)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _make_decoder(self, manifest: Manifest, index: np.ndarray, options: DataOptions, samples: int) -> Decoder:
        cancelled = self._closed.is_set
        if options.latents:
            return LatentDecoder(self._reader, latent_format(manifest), options.latent_scale, cancelled)
        if options.workers:
            return PoolDecoder(self._reader, index, options.image_size, samples, options.workers, cancelled)
        return ThreadDecoder(self._reader, options.image_size, cancelled)

    def _run(self, start_step: int) -> None:
        try:
            begun: deque[_Begun] = deque()
            for step in itertools.count(start_step):
                begun.append(self._begin(step))
                if self._closed.is_set():
                    return
                while begun and (len(begun) > STEPS_IN_WORK or self._decoder.is_done(begun[0].decoding)):
                    self._ready.put(self._finish(begun.popleft()))
        except BaseException as error:  # whatever it is, the consumer must not wait for ever
            self._ready.put(error)
        finally:
            self._decoder.close()
            self._reader.close()

    def _begin(self, step: int) -> _Begun:
        self._announce(step)
        rows = self._order.ids(step)[self._slots.start : self._slots.stop].tolist()
        first = step * self._order.batch
        positions = range(first + self._slots.start, first + self._slots.stop)
        views = views_at(self._options, self._seed, positions)
        return _Begun(step, rows, positions, views, self._decoder.begin(rows, views))

    def _announce(self, step: int) -> None:
        """Which shards this step's blocks and the next ones lie in, where that has changed."""
        if step < self._announced_until or not self._reader.files.wants_announcements:
            return
        self._announced_until = self._order.next_block(step)
        soon = self._order.shards_of(self._announced_until, self._slots)
        if self._reader.files.announce(self._order.shards_of(step, self._slots), soon):
            self._decoder.forget_files()

    def _finish(self, begun: _Begun) -> Batch:
        self._decoder.finish(begun.decoding)
        replaced = self._replacer.replace(begun.step, self._slots, begun.rows, begun.views, begun.decoding)
        images = torch.from_numpy(begun.decoding.images)
        ids = np.array(begun.rows, dtype=np.int64)
        drawn = [[draw.at(self._seed, j) for draw in self._draws] for j in begun.positions]
        columns = [_stacked(column) for column in zip(*drawn, strict=True)]
        return Batch(
            step=begun.step,
            ids=ids,
            images=images if self._options.latents else images.permute(0, 3, 1, 2),
            labels=torch.from_numpy(self._labels[ids].astype(np.int64)),
            draws={draw.name: column for draw, column in zip(self._draws, columns, strict=True)},
            digest=self._digest(begun, drawn),
            replaced=replaced,
        )

    def _digest(self, begun: _Begun, drawn: Sequence[Sequence[torch.Tensor]]) -> int:
        total = 0
        for head, values in zip(heads(*self._reader.places(begun.rows), begun.views), drawn, strict=True):
            parts = [draw.digest_bytes(value) for draw, value in zip(self._draws, values, strict=True)]
            total += digest(head + framed(parts))
        return total % 2**64

    def _drain(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()


def _stacked(values: Sequence[torch.Tensor]) -> torch.Tensor:
    # numpy stacks in this one thread; torch would start a second team of OpenMP threads beside the training's.
    return torch.from_numpy(np.stack([value.numpy() for value in values]))
