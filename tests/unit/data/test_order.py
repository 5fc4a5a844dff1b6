import time
from collections import Counter

import numpy as np
import pytest

from dist_diffusion.data.manifest import Manifest, Shard
from dist_diffusion.data.order import Order, default_streams, rank_slots
from dist_diffusion.draws import permutation
from dist_diffusion.errors import ConfigError


def _shards(samples: list[int]) -> list[tuple[str, int]]:
    return [(f"shard-{i:06d}.tar {i * 7919 % 101:064x}", count) for i, count in enumerate(samples)]


SETS = {
    1: [331],
    2: [211, 120],
    5: [13, 140, 1, 29, 150],
    17: [7, 33, 19, 1, 1, 60, 12, 8, 25, 22, 4, 9, 46, 2, 41, 6, 38],
}
# Streams, global batch, block: blocks within a step, across steps, and larger than a stream.
SHAPES = [(1, 24, 5), (3, 24, 16), (8, 24, 1024), (24, 24, 7), (1, 48, 64), (6, 48, 3), (16, 48, 1), (48, 48, 4)]
WORLDS = (1, 2, 3, 4, 8)
EPOCHS = 3

Blocks = list[list[list[list[int]]]]


def _blocks_by_definition(shards: list[tuple[str, int]], seed: int, streams: int, block: int) -> Blocks:
    """Rows [epoch][stream][block][place] as the documentation words it: each epoch laid out whole, row by row."""
    ordered = sorted(shards)
    first_rows = {}
    row = 0
    for name, count in shards:
        first_rows[name] = row
        row += count
    length = row // streams
    epochs: Blocks = []
    for epoch in range(EPOCHS):
        laid_out: list[int] = []
        for i in permutation(seed, "order.shards", epoch, len(shards)):
            name, count = ordered[i]
            laid_out += range(first_rows[name], first_rows[name] + count)
        epochs.append([])
        for c in range(streams):
            own = laid_out[c * length : (c + 1) * length]
            parts = [own[start : start + block] for start in range(0, length, block)]
            shuffles = [permutation(seed, f"order.block/{epoch}/{c}", b, len(part)) for b, part in enumerate(parts)]
            epochs[-1].append([[part[i] for i in shuffle] for part, shuffle in zip(parts, shuffles, strict=True)])
    return epochs


def _steps_by_definition(blocks: Blocks, batch: int) -> list[list[tuple[int, int, int, int]]]:
    """Where in the blocks each slot of each step reads."""
    steps = []
    for epoch, streams in enumerate(blocks):
        places = [[(epoch, c, b, i) for b, part in enumerate(own) for i in range(len(part))]
                  for c, own in enumerate(streams)]  # fmt: skip
        share = batch // len(streams)
        for k in range(len(places[0]) // share):
            steps.append([place for own in places for place in own[k * share : (k + 1) * share]])
    return steps


@pytest.mark.parametrize("num_shards", SETS)
@pytest.mark.parametrize(("streams", "batch", "block"), SHAPES)
def test_is_the_documented_order(num_shards: int, streams: int, batch: int, block: int) -> None:
    shards = _shards(SETS[num_shards])
    order = Order(shards, seed=3, streams=streams, batch=batch, block=block)
    blocks = _blocks_by_definition(shards, 3, streams, block)
    steps = _steps_by_definition(blocks, batch)
    assert len(steps) == EPOCHS * order.steps_per_epoch
    for step, places in enumerate(steps):
        assert order.ids(step).tolist() == [blocks[epoch][c][b][i] for epoch, c, b, i in places]
    rng = np.random.default_rng(0)
    for step in rng.choice(len(steps), 8).tolist():
        for slot in rng.choice(batch, 8).tolist():
            epoch, c, b, i = steps[step][slot]
            rows, within = order.block_of(step, slot)
            assert (rows.tolist(), within) == (blocks[epoch][c][b], i)


@pytest.mark.parametrize("num_shards", SETS)
@pytest.mark.parametrize(("streams", "batch", "block"), SHAPES)
def test_the_shards_of_a_step_are_those_of_its_blocks(num_shards: int, streams: int, batch: int, block: int) -> None:
    shards = _shards(SETS[num_shards])
    order = Order(shards, seed=3, streams=streams, batch=batch, block=block)
    blocks = _blocks_by_definition(shards, 3, streams, block)
    steps = _steps_by_definition(blocks, batch)
    shard_of = np.repeat(range(num_shards), SETS[num_shards])
    share = batch // streams

    def needed(step: int, slots: range) -> set[int]:
        read = {steps[step][slot][:3] for slot in slots}
        return {int(shard_of[row]) for epoch, c, b in read for row in blocks[epoch][c][b]}

    for step in range(len(steps)):
        for world in WORLDS:
            slots = rank_slots(batch, world, step % world)
            found = order.shards_of(step, slots)
            assert list(found) == sorted(set(found))
            # A rank that reads a part of a stream may be told of the whole stream's.
            whole = range(slots.start // share * share, -(-slots.stop // share) * share)
            assert needed(step, slots) <= set(found) == needed(step, whole)
        ahead = order.next_block(step)
        read = [{place[:3] for place in places} for places in steps[step : ahead + 1]]
        assert all(later <= read[0] for later in read[:-1]) and (ahead == len(steps) or not read[-1] <= read[0])


@pytest.mark.parametrize("num_shards", SETS)
@pytest.mark.parametrize(("streams", "batch", "block"), SHAPES)
def test_every_layout_and_restart_gives_the_same_batches_and_each_rank_as_many(
    num_shards: int, streams: int, batch: int, block: int
) -> None:
    shards = _shards(SETS[num_shards])

    def order() -> Order:
        return Order(shards, seed=0, streams=streams, batch=batch, block=block)

    total, per_epoch = sum(SETS[num_shards]), order().steps_per_epoch
    uninterrupted = order()
    expected = [uninterrupted.ids(step).tolist() for step in range(EPOCHS * per_epoch)]
    rng = np.random.default_rng(0)
    for world in WORLDS:
        restarts = sorted(rng.choice(len(expected), 3).tolist())
        batches: list[list[int]] = []
        of_rank: list[list[int]] = [[] for _ in range(world)]
        for begin, end in zip([0, *restarts], [*restarts, len(expected)], strict=True):
            for rank, seen in enumerate(of_rank):
                own = rank_slots(batch, world, rank)
                started = order()
                seen += [int(row) for step in range(begin, end) for row in started.ids(step)[own.start : own.stop]]
        for step in range(len(expected)):
            batches.append([])
            for seen in of_rank:
                batches[-1] += seen[step * batch // world : (step + 1) * batch // world]
        assert batches == expected
        assert {len(seen) for seen in of_rank} == {EPOCHS * per_epoch * batch // world}
    left_out = []
    for epoch in range(EPOCHS):
        visits = Counter(row for ids in expected[epoch * per_epoch : (epoch + 1) * per_epoch] for row in ids)
        assert max(visits.values()) == 1 and set(visits) <= set(range(total))
        left_out.append(set(range(total)) - set(visits))
        assert len(left_out[-1]) == total - per_epoch * batch < streams + batch
    if num_shards > 1 and left_out[0]:
        assert any(other != left_out[0] for other in left_out[1:])


def test_epochs_differ_and_seeds_differ() -> None:
    shards = _shards(SETS[5])
    order = Order(shards, seed=0, streams=4, batch=12, block=10)
    assert order.ids(0).tolist() != order.ids(order.steps_per_epoch).tolist()
    assert order.ids(0).tolist() != Order(shards, seed=1, streams=4, batch=12, block=10).ids(0).tolist()


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    shards = _shards(SETS[17])
    forward = Order(shards, seed=0, streams=4, batch=12, block=7)
    steps = list(range(5 * forward.steps_per_epoch))
    expected = {step: forward.ids(step).tolist() for step in steps}
    backward = Order(shards, seed=0, streams=4, batch=12, block=7)
    assert {step: backward.ids(step).tolist() for step in reversed(steps)} == expected


@pytest.mark.parametrize("num_shards", SETS)
def test_the_order_of_the_manifest_changes_nothing_but_the_row_numbers(num_shards: int) -> None:
    shards = _shards(SETS[num_shards])
    shuffled = [shards[i] for i in np.random.default_rng(0).permutation(num_shards)]

    def samples(listing: list[tuple[str, int]]) -> list[tuple[str, int]]:
        of_row = [(name, i) for name, count in listing for i in range(count)]
        order = Order(listing, seed=0, streams=2, batch=10, block=8)
        return [of_row[row] for step in range(2 * order.steps_per_epoch) for row in order.ids(step)]

    assert samples(shuffled) == samples(shards)


def test_where_the_set_lies_does_not_enter_the_order() -> None:
    shards = tuple(Shard(f"shard-{i:06d}.tar", n, 512 * n, f"{i * 7919 % 101:064x}") for i, n in enumerate(SETS[17]))
    places = ("/data/set", "renamed", "gs://bucket/set", "s3://another-bucket/deep/set", "https://host/set")
    orders = [
        Order(Manifest(place, shards, ("a",), (335,), {}, "index.npy", "").identities, 0, streams=8, batch=24, block=16)
        for place in places
    ]
    for step in range(2 * orders[0].steps_per_epoch):
        assert len({tuple(order.ids(step).tolist()) for order in orders}) == 1


def test_ranks_that_do_not_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch=12 is not divisible by the 5 ranks"):
        rank_slots(12, 5, 0)


def test_default_streams() -> None:
    assert [default_streams(batch) for batch in (1, 6, 96, 256, 257, 512, 1000, 514)] == [1, 6, 96, 256, 1, 256, 250, 2]


def test_streams_that_do_not_divide_the_batch() -> None:
    for streams in (5, 24, 0):
        with pytest.raises(ConfigError, match=rf"data\.canonical_streams={streams} must divide train\.global_batch=12"):
            Order(_shards([100]), seed=0, streams=streams, batch=12, block=10)


def test_an_epoch_without_a_whole_step() -> None:
    assert Order(_shards([12]), seed=0, streams=4, batch=12, block=10).steps_per_epoch == 1
    with pytest.raises(ConfigError, match=r"data\.shards holds 11 samples.*train\.global_batch=12"):
        Order(_shards([11]), seed=0, streams=4, batch=12, block=10)
    with pytest.raises(ConfigError, match=r"data\.shuffle_block=0"):
        Order(_shards([12]), seed=0, streams=4, batch=12, block=0)


def test_golden_first_ids() -> None:
    """If this changes, every run's data order has changed: old runs would resume into another order."""
    shards = [("shard-000000.tar aa", 30), ("shard-000001.tar bb", 21), ("shard-000002.tar cc", 50)]
    order = Order(shards, seed=42, streams=4, batch=8, block=16)
    assert [order.ids(step).tolist() for step in range(8)] == [
        [9, 5, 61, 27, 85, 78, 99, 37],
        [12, 4, 55, 54, 75, 86, 40, 32],
        [10, 1, 51, 59, 73, 83, 97, 38],
        [8, 0, 25, 57, 71, 81, 96, 31],
        [7, 15, 52, 56, 82, 79, 100, 30],
        [6, 11, 58, 53, 74, 77, 98, 34],
        [2, 14, 29, 28, 80, 76, 35, 39],
        [13, 3, 26, 60, 84, 72, 36, 33],
    ]


def test_millions_of_samples_cost_no_time() -> None:
    order = Order(_shards([128] * 10_000), seed=0, streams=256, batch=256, block=1024)
    begin = time.perf_counter()
    for step in range(1000, 2100):
        order.ids(step)
    assert (time.perf_counter() - begin) / 1100 < 1e-3
