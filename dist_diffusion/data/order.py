"""Which sample fills which slot of which step: a pure function of (shards, seed, C, B, block, step).

Shapes: S shards, N samples, C streams, B batch, L = N // C samples of a stream, m = B // C of them a step.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from dist_diffusion.draws import permutation
from dist_diffusion.errors import ConfigError

MAX_DEFAULT_STREAMS = 256


def default_streams(batch: int) -> int:
    """The largest divisor of the global batch up to 256."""
    return max(c for c in range(1, min(batch, MAX_DEFAULT_STREAMS) + 1) if batch % c == 0)


def rank_slots(batch: int, world: int, rank: int) -> range:
    """The contiguous slots of the global batch that a rank computes. ConfigError where the ranks do not divide it."""
    if batch % world:
        raise ConfigError(f"train.global_batch={batch} is not divisible by the {world} ranks of this launch")
    share = batch // world
    return range(rank * share, (rank + 1) * share)


class Order:
    """The data order of a run: an epoch is the whole steps that fit, and epochs follow each other for ever.

    `shards` are (identity, samples) in the order of index.npy's rows. The order depends on the sorted identities only:
    listing the shards otherwise renumbers the rows but leaves the sequence of samples as it is.
    """

    def __init__(self, shards: Sequence[tuple[str, int]], seed: int, streams: int, batch: int, block: int) -> None:
        if streams < 1 or batch % streams:
            raise ConfigError(f"data.canonical_streams={streams} must divide train.global_batch={batch}")
        if block < 1:
            raise ConfigError(f"data.shuffle_block={block} must be at least 1")
        samples = np.array([count for _, count in shards], dtype=np.int64)
        self.num_samples = int(samples.sum())
        self.batch = batch
        self.streams = streams
        self._seed = seed
        self._block = block
        self._stream_length = self.num_samples // streams
        self._per_step = batch // streams
        self.steps_per_epoch = self._stream_length // self._per_step
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"data.shards holds {self.num_samples} samples: an epoch has no whole step of "
                f"train.global_batch={batch} (with {streams} data.canonical_streams); use more data or a smaller batch"
            )
        by_identity = np.array(sorted(range(len(shards)), key=lambda i: shards[i][0]), dtype=np.int64)
        self._sorted_numbers = by_identity
        self._sorted_samples = samples[by_identity]
        self._sorted_first_rows = (np.cumsum(samples) - samples)[by_identity]
        # A step needs one block of every stream, two where it straddles; all streams move in lockstep.
        self._layout = lru_cache(maxsize=2)(self._lay_out)
        self._shuffled = lru_cache(maxsize=4)(self._shuffle)

    def ids(self, step: int) -> np.ndarray:
        """The row of index.npy that fills each slot of a step: int64 [B]. O(1) in the step."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self._per_step
        last = first + self._per_step
        parts = []
        for number in range(first // self._block, (last - 1) // self._block + 1):
            start = number * self._block
            parts.append(self._shuffled(epoch, number)[:, max(first - start, 0) : last - start])
        return np.concatenate(parts, axis=1).reshape(-1)

    def block_of(self, step: int, slot: int) -> tuple[np.ndarray, int]:
        """The rows of the block that feeds a slot at a step, in their order (int64 [size]), and which of them it is."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        stream, within = divmod(slot, self._per_step)
        number, place = divmod(step_of_epoch * self._per_step + within, self._block)
        return self._shuffled(epoch, number)[stream], place

    def shards_of(self, step: int, slots: range) -> tuple[int, ...]:
        """The numbers of the shards that hold any sample of the blocks which feed some slots at a step; ascending."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self._per_step
        begins, _, numbers = self._layout(epoch)
        found: set[int] = set()
        for block in range(first // self._block, (first + self._per_step - 1) // self._block + 1):
            start, size = self._extent(block)
            for stream in range(slots.start // self._per_step, (slots.stop - 1) // self._per_step + 1):
                ends = stream * self._stream_length + start + np.array([0, size - 1])
                first_shard, last_shard = np.searchsorted(begins, ends, side="right") - 1
                found.update(numbers[first_shard : last_shard + 1].tolist())
        return tuple(sorted(found))

    def next_block(self, step: int) -> int:
        """The first step after `step` that reads a block which `step` does not."""
        step_of_epoch = step % self.steps_per_epoch
        read = ((step_of_epoch + 1) * self._per_step - 1) // self._block
        ahead = (read + 1) * self._block // self._per_step - step_of_epoch
        return step + min(ahead, self.steps_per_epoch - step_of_epoch)

    def _lay_out(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The epoch's shards end to end: where each begins, the row of its first sample, its number; int64 [S]."""
        shuffled = permutation(self._seed, "order.shards", epoch, len(self._sorted_samples))
        samples = self._sorted_samples[shuffled]
        return np.cumsum(samples) - samples, self._sorted_first_rows[shuffled], self._sorted_numbers[shuffled]

    def _extent(self, block: int) -> tuple[int, int]:
        """Where in its stream a block starts, and its size."""
        start = block * self._block
        return start, min(self._block, self._stream_length - start)

    def _shuffle(self, epoch: int, number: int) -> np.ndarray:
        """Block `number` of every stream, shuffled: rows, int64 [C, size]."""
        begins, first_rows, _ = self._layout(epoch)
        start, size = self._extent(number)
        stream_starts = np.arange(self.streams, dtype=np.int64)[:, None] * self._stream_length
        positions = stream_starts + start + np.arange(size, dtype=np.int64)
        shard = np.searchsorted(begins, positions, side="right") - 1
        rows = first_rows[shard] + positions - begins[shard]
        shuffles = [permutation(self._seed, f"order.block/{epoch}/{c}", number, size) for c in range(self.streams)]
        return np.take_along_axis(rows, np.stack(shuffles), axis=1)
