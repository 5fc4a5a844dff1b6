import time
from collections import Counter

import numpy as np
import pytest

from dist_diffusion.data.order import Order, default_streams, rank_slots
from dist_diffusion.draws import permutation
from dist_diffusion.errors import ConfigError


def _shards(samples: list[int]) -> list[tuple[str, int]]:
    return [(f"shard-{i:06d}.tar {i * 7919 % 101:064x}", count) for i, count in enumerate(samples)]


SETS = {
    1: [100],
    2: [61, 40],
    5: [13, 40, 1, 29, 50],
    17: [7, 3, 19, 1, 1, 30, 12, 8, 5, 22, 4, 9, 16, 2, 11, 6, 33],
}


def _by_definition(
    shards: list[tuple[str, int]], seed: int, streams: int, batch: int, block: int, step: int
) -> list[int]:
    """One step's slots as the documentation words it: an epoch laid out whole, sample by sample."""
    ordered = sorted(shards)
    first_rows = {}
    row = 0
    for name, count in shards:
        first_rows[name] = row
        row += count
    length = row // streams
    steps_per_epoch = length // (batch // streams)
    epoch, k = divmod(step, steps_per_epoch)
    laid_out: list[int] = []
    for i in permutation(seed, "order.shards", epoch, len(shards)):
        name, count = ordered[i]
        laid_out += range(first_rows[name], first_rows[name] + count)
    slots = []
    for c in range(streams):
        own = laid_out[c * length : (c + 1) * length]
        shuffled = []
        for b in range(0, length, block):
            part = own[b : b + block]
            shuffled += [part[i] for i in permutation(seed, f"order.block/{epoch}/{c}", b // block, len(part))]
        slots += shuffled[k * (batch // streams) : (k + 1) * (batch // streams)]
    return slots


@pytest.mark.parametrize("num_shards", SETS)
@pytest.mark.parametrize(("streams", "batch", "block"), [(1, 8, 16), (4, 12, 5), (6, 6, 1024), (2, 30, 4), (3, 9, 1)])
def test_is_the_documented_order(num_shards: int, streams: int, batch: int, block: int) -> None:
    shards = _shards(SETS[num_shards])
    order = Order(shards, seed=3, streams=streams, batch=batch, block=block)
    for step in range(2 * order.steps_per_epoch + 1):
        assert order.ids(step).tolist() == _by_definition(shards, 3, streams, batch, block, step)


@pytest.mark.parametrize("num_shards", SETS)
@pytest.mark.parametrize(("streams", "batch"), [(1, 8), (4, 12), (6, 6)])
def test_an_epoch_visits_a_sample_at_most_once_and_leaves_only_the_remainder(
    num_shards: int, streams: int, batch: int
) -> None:
    order = Order(_shards(SETS[num_shards]), seed=0, streams=streams, batch=batch, block=10)
    total = sum(SETS[num_shards])
    assert order.steps_per_epoch == (total // streams) // (batch // streams)
    left_out = []
    for epoch in range(4):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        seen = Counter(np.concatenate([order.ids(step) for step in steps]).tolist())
        assert max(seen.values()) == 1
        assert set(seen) <= set(range(total))
        left_out.append(set(range(total)) - set(seen))
        assert len(left_out[-1]) == total - order.steps_per_epoch * batch < streams + batch
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


def test_ranks_take_the_batch_in_contiguous_parts_whatever_their_number() -> None:
    order = Order(_shards(SETS[5]), seed=0, streams=4, batch=12, block=10)
    for world in (1, 2, 3, 4, 6, 12):
        for step in range(order.steps_per_epoch + 1):
            ids = order.ids(step)
            parts = [ids[slot] for rank in range(world) for slot in rank_slots(12, world, rank)]
            assert parts == ids.tolist()
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
