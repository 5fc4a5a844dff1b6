"""Which image is made where: a pure function of the job's sizes. Nothing here depends on ranks or interruptions."""

from dataclasses import dataclass

from dist_diffusion import draws


@dataclass(frozen=True)
class SampleBatch:
    """Images that go through the network together; of them the first `keep` are wanted."""

    indices: range
    keep: int


@dataclass(frozen=True)
class OutputShard:
    """One output file: the images of `indices`."""

    number: int
    indices: range


def output_shards(num_samples: int, shard_size: int) -> list[OutputShard]:
    """The shards of a job; the last covers only indices below `num_samples`."""
    starts = range(0, num_samples, shard_size)
    return [OutputShard(n, range(first, min(first + shard_size, num_samples))) for n, first in enumerate(starts)]


def batches(shard: OutputShard, batch_size: int) -> list[SampleBatch]:
    """Whole batches: the last is filled with the next indices, so that no image depends on where the job ends."""
    starts = range(shard.indices.start, shard.indices.stop, batch_size)
    return [SampleBatch(range(i, i + batch_size), min(batch_size, shard.indices.stop - i)) for i in starts]


def share(shards: list[OutputShard], rank: int, world_size: int) -> list[OutputShard]:
    """The shards that one of the ranks makes."""
    return shards[rank::world_size]


def label(seed: int, index: int, num_classes: int) -> int:
    """The class of image `index`, uniform over the classes."""
    return int(draws.uniform(seed, "sample_label", index) * num_classes)
