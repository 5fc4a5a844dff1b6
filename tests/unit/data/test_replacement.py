"""Samples that cannot be decoded: a neighbour of their block stands for them, alike in every layout."""

import dataclasses
import itertools
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images, manifest
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.loader import Batch, Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, rank_slots
from dist_diffusion.data.reader import Reader
from dist_diffusion.draws import Uniform
from dist_diffusion.errors import DataError

SEED, BATCH = 7, 12
OPTIONS = DataOptions(image_size=8, random_flip=True)


def _order(made: Manifest) -> Order:
    return Order(made.identities, SEED, streams=4, batch=BATCH, block=8)


def _spoil(made: Manifest, spoilt: Iterable[int]) -> np.ndarray:
    """Makes rows zeros, as if they had been written so; returns the index of that."""
    rows = np.array(manifest.index(made))
    for row in spoilt:
        shard, _ = Reader(made, rows).locate(row)
        path = Path(made.folder, shard.name)
        content = bytearray(path.read_bytes())
        begin, length = int(rows["offset"][row]), int(rows["length"][row])
        content[begin : begin + length] = bytes(length)
        path.write_bytes(content)
        rows["crc32"][row] = zlib.crc32(bytes(length))
    return rows


def _load(
    made: Manifest, index: np.ndarray, steps: int, slots: range, options: DataOptions = OPTIONS, start: int = 0
) -> list[Batch]:
    with Loader(made, index, _order(made), options, (Uniform("t"),), SEED, slots, start) as loader:
        return list(itertools.islice(loader, steps))


def _expected(made: Manifest, index: np.ndarray, step: int, slot: int) -> int:
    """By the rule as it is written: the nearest earlier good one of the block, else the nearest later."""
    reader = Reader(made, index)

    def is_good(row: int) -> bool:
        try:
            images.decode(reader.image_bytes(row))
        except UndecodableError:
            return False
        return True

    block, place = _order(made).block_of(step, slot)
    candidates = [place, *range(place - 1, -1, -1), *range(place + 1, len(block))]
    return next(int(block[i]) for i in candidates if is_good(int(block[i])))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_nearest_good_neighbour_of_the_block_stands_in(made: Manifest, workers: int) -> None:
    """Of stream 1's first block the first two and a middle one: two have no earlier good one, one has."""
    order = _order(made)
    block, _ = order.block_of(0, 3)
    spoilt = [int(block[i]) for i in (0, 1, 5)]
    index = _spoil(made, spoilt)
    clean = [order.ids(step).tolist() for step in range(5)]
    batches = _load(made, index, 5, range(BATCH), dataclasses.replace(OPTIONS, workers=workers))
    for step, batch in enumerate(batches):
        assert len(batch.ids) == BATCH
        assert batch.ids.tolist() == [_expected(made, index, step, slot) for slot in range(BATCH)]
        assert batch.labels.tolist() == index["label"][batch.ids].tolist()
        moved = [i for i in range(BATCH) if batch.ids[i] != clean[step][i]]
        assert [replaced.row for replaced in batch.replaced] == [clean[step][i] for i in moved]
        assert [replaced.by for replaced in batch.replaced] == [batch.ids[i] for i in moved]
    assert sorted(replaced.row for batch in batches for replaced in batch.replaced) == sorted(spoilt)
    first = batches[0].replaced[0]
    shard, _ = Reader(made, index).locate(first.row)
    assert (first.shard, first.key) == (shard.name, f"{first.row:02d}")
    assert "known format" in first.reason and f"sample {first.row:02d} of shard {shard.name}" in str(first)


@pytest.mark.parametrize(("world", "start"), [(2, 0), (3, 0), (4, 3)])
def test_every_layout_and_restart_replaces_alike(made: Manifest, world: int, start: int) -> None:
    index = _spoil(made, [int(row) for row in _order(made).ids(1)[::5]])
    whole = _load(made, index, 7, range(BATCH))
    assert sum(len(batch.replaced) for batch in whole) >= 3
    steps = 7 - start
    parts = [_load(made, index, steps, rank_slots(BATCH, world, rank), start=start) for rank in range(world)]
    for batch, *shares in zip(whole[start:], *parts, strict=True):
        assert np.array_equal(np.concatenate([share.ids for share in shares]), batch.ids)
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert sum(share.digest for share in shares) % 2**64 == batch.digest


def test_fail_names_the_sample(made: Manifest) -> None:
    row = int(_order(made).ids(0)[0])
    index = _spoil(made, [row])
    shard, within = Reader(made, index).locate(row)
    message = rf"sample {within} of shard {made.folder}/{shard.name} .*cannot be decoded: .*data.undecodable=replace"
    with pytest.raises(DataError, match=message):
        _load(made, index, 1, range(BATCH), dataclasses.replace(OPTIONS, undecodable="fail"))


def test_too_many_in_a_row_end_the_run(made: Manifest) -> None:
    index = _spoil(made, [int(row) for row in _order(made).ids(0)[:4]])
    options = dataclasses.replace(OPTIONS, max_replaced_in_a_row=4)
    assert len(_load(made, index, 1, range(BATCH), options)[0].replaced) == 4
    with pytest.raises(DataError, match=r"and so were the 3 samples before it: more in a row than data\.max_replaced"):
        _load(made, index, 1, range(BATCH), dataclasses.replace(options, max_replaced_in_a_row=3))


def test_a_block_without_a_good_sample_is_an_error(made: Manifest) -> None:
    block, _ = _order(made).block_of(0, 0)
    with pytest.raises(DataError, match="and neither can any other of its block"):
        _load(made, _spoil(made, block.tolist()), 1, range(BATCH))


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_never_replaced(made: Manifest, workers: int) -> None:
    row = int(_order(made).ids(0)[2])
    index = _spoil(made, [row])
    index["crc32"][row] ^= 1
    with pytest.raises(DataError, match="is damaged"):
        _load(made, index, 1, range(BATCH), dataclasses.replace(OPTIONS, workers=workers))
