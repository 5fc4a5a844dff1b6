"""The sampling plan: every image once, whatever the sizes, and nothing depends on where the job ends."""

import pytest

from dist_diffusion.sampling.plan import batches, label, output_shards, share


@pytest.mark.parametrize(("num", "shard", "batch"), [(1000, 250, 125), (1003, 64, 16), (5, 64, 16), (64, 64, 64)])
def test_every_image_is_made_once(num: int, shard: int, batch: int) -> None:
    shards = output_shards(num, shard)
    kept = [i for s in shards for b in batches(s, batch) for i in b.indices[: b.keep]]
    assert kept == list(range(num))
    assert all(len(b.indices) == batch for s in shards for b in batches(s, batch))


def test_a_grown_job_keeps_its_batches() -> None:
    small = {b.indices for s in output_shards(1003, 64) for b in batches(s, 16)}
    large = {b.indices for s in output_shards(2000, 64) for b in batches(s, 16)}
    assert small <= large


def test_ranks_share_the_shards_out() -> None:
    shards = output_shards(1003, 64)
    for world in (1, 2, 3, 20):
        parts = [share(shards, rank, world) for rank in range(world)]
        assert sorted((s for part in parts for s in part), key=lambda s: s.number) == shards


def test_labels_are_uniform_over_the_classes() -> None:
    labels = [label(0, i, 10) for i in range(5000)]
    assert set(labels) == set(range(10))
    assert all(420 < labels.count(c) < 580 for c in range(10))
