import hashlib
import itertools
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images, manifest
from dist_diffusion.data.loader import Batch, Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, rank_slots
from dist_diffusion.data.reader import Reader
from dist_diffusion.draws import Bernoulli, Normal, Uniform, normal, uniform
from dist_diffusion.errors import DataError

SEED = 7
BATCH = 12
DRAWS = (Uniform("t"), Normal("noise", (3, 8, 8)), Bernoulli("dropped", 0.5))
OPTIONS = DataOptions(image_size=8, random_flip=True, random_crop=True)


def _order(made: Manifest) -> Order:
    return Order(made.identities, SEED, streams=4, batch=BATCH, block=8)


def _loader(
    made: Manifest,
    slots: range = range(BATCH),
    start: int = 0,
    options: DataOptions = OPTIONS,
    index: np.ndarray | None = None,
) -> Loader:
    index = manifest.index(made) if index is None else index
    return Loader(made, index, _order(made), options, DRAWS, SEED, slots, start)


def _load(
    made: Manifest,
    steps: int,
    slots: range = range(BATCH),
    start: int = 0,
    random_crop: bool = True,
    random_flip: bool = True,
) -> list[Batch]:
    options = DataOptions(image_size=8, random_flip=random_flip, random_crop=random_crop)
    with _loader(made, slots, start, options) as loader:
        return list(itertools.islice(loader, steps))


def _loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-loader"]


@pytest.mark.parametrize("random_crop", [False, True])
def test_a_batch_is_what_order_images_and_draws_say(made: Manifest, random_crop: bool) -> None:
    rows = manifest.index(made)
    reader = Reader(made, rows)
    order = _order(made)
    flips = []
    for step, batch in enumerate(_load(made, steps=7, random_crop=random_crop)):  # 5 steps are an epoch
        assert batch.step == step
        assert batch.ids.tolist() == order.ids(step).tolist()
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (BATCH, 3, 8, 8))
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == rows["label"][order.ids(step)].tolist()
        for slot, row in enumerate(order.ids(step).tolist()):
            j = step * BATCH + slot
            image = images.decode(reader.image_bytes(row))
            crop = (uniform(SEED, "crop_size", j), uniform(SEED, "crop_x", j), uniform(SEED, "crop_y", j))
            square = images.random_crop(image, 8, crop) if random_crop else images.fit(image, 8)
            flips.append(uniform(SEED, "flip", j) < 0.5)
            expected = images.to_uint8(square, flips[-1])
            assert np.array_equal(batch.images[slot].permute(1, 2, 0).numpy(), expected)
            assert batch.draws["t"][slot].item() == uniform(SEED, "t", j)
            assert torch.equal(batch.draws["noise"][slot], normal(SEED, "noise", j, (3, 8, 8)))
            assert batch.draws["dropped"][slot].item() == (uniform(SEED, "dropped", j) < 0.5)
    assert 0 < sum(flips) < len(flips)


def test_digest_is_the_documented_sum(made: Manifest) -> None:
    reader = Reader(made, manifest.index(made))
    for random_crop, random_flip in [(True, True), (False, True), (False, False)]:
        batch = _load(made, steps=1, start=3, random_crop=random_crop, random_flip=random_flip)[0]
        total = 0
        for slot, row in enumerate(batch.ids.tolist()):
            j = 3 * BATCH + slot
            shard, within = reader.locate(row)
            crop = [uniform(SEED, stream, j) for stream in ("crop_size", "crop_x", "crop_y")]
            noise = zlib.crc32(batch.draws["noise"][slot].numpy().tobytes())
            parts = [
                bytes.fromhex(shard.sha256),
                struct.pack("<Q", within),
                struct.pack("<ddd", *crop) if random_crop else b"",
                bytes([random_flip and uniform(SEED, "flip", j) < 0.5]),
                struct.pack("<d", uniform(SEED, "t", j)),
                struct.pack("<I", noise),
                bytes([uniform(SEED, "dropped", j) < 0.5]),
            ]
            message = b"".join(struct.pack("<I", len(part)) + part for part in parts)
            total += int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
        assert batch.digest == total % 2**64


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_load_the_same_step(made: Manifest, world: int) -> None:
    whole = _load(made, steps=7)
    parts = [_load(made, steps=7, slots=rank_slots(BATCH, world, rank)) for rank in range(world)]
    for step, batch in enumerate(whole):
        shares = [part[step] for part in parts]
        assert np.array_equal(np.concatenate([share.ids for share in shares]), batch.ids)
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)
        for name in ("t", "noise", "dropped"):
            assert torch.equal(torch.cat([share.draws[name] for share in shares]), batch.draws[name])
        assert sum(share.digest for share in shares) % 2**64 == batch.digest


def test_starts_at_any_step(made: Manifest) -> None:
    whole = _load(made, steps=12)
    for start in (1, 5, 9):
        resumed = _load(made, steps=3, start=start)
        assert [batch.digest for batch in resumed] == [batch.digest for batch in whole[start : start + 3]]
        assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[start:], strict=False))
    assert len({batch.digest for batch in whole}) == len(whole)


def test_a_renamed_folder_changes_nothing(made: Manifest, tmp_path: Path) -> None:
    before = [batch.digest for batch in _load(made, steps=6)]
    moved = manifest.load(Path(made.folder).rename(tmp_path / "moved").as_posix())
    assert [batch.digest for batch in _load(moved, steps=6)] == before


def test_a_damaged_sample_ends_the_step_that_needs_it(made: Manifest) -> None:
    row = int(_order(made).ids(2)[5])
    rows = manifest.index(made)
    shard, _ = Reader(made, rows).locate(row)
    path = Path(made.folder, shard.name)
    content = bytearray(path.read_bytes())
    content[int(rows["offset"][row]) + 9] ^= 4
    path.write_bytes(content)
    with _loader(made) as loader:
        assert [next(loader).step, next(loader).step] == [0, 1]
        for _ in range(2):
            with pytest.raises(DataError, match=rf"sample \d+ of shard {path} .*is damaged") as caught:
                next(loader)
            assert len(caught.value.args) == 1
    with _loader(made, slots=range(6, 12)) as other_rank:
        assert [next(other_rank).step for _ in range(4)] == [0, 1, 2, 3]


def test_an_undecodable_sample_is_named(made: Manifest) -> None:
    rows = np.array(manifest.index(made))
    row = int(_order(made).ids(0)[0])
    shard, within = Reader(made, rows).locate(row)
    path = Path(made.folder, shard.name)
    content = bytearray(path.read_bytes())
    begin, length = int(rows["offset"][row]), int(rows["length"][row])
    content[begin : begin + length] = bytes(length)
    path.write_bytes(content)
    rows["crc32"][row] = zlib.crc32(bytes(length))
    message = rf"sample {within} of shard {path} \(byte {begin}\) cannot be decoded: .*known format"
    with _loader(made, index=rows) as loader, pytest.raises(DataError, match=message):
        next(loader)


def test_prefetches_a_few_steps_and_waits(made: Manifest) -> None:
    order = _order(made)
    asked: list[int] = []
    original = order.ids

    def ids(step: int) -> np.ndarray:
        asked.append(step)
        return original(step)

    order.ids = ids  # type: ignore[method-assign]
    with Loader(made, manifest.index(made), order, OPTIONS, DRAWS, SEED, range(BATCH), 0):
        deadline = time.monotonic() + 10
        while len(asked) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert asked == [0, 1, 2, 3, 4]  # four are ready, the fifth waits for room


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_close_ends_the_thread(made: Manifest, taken: int) -> None:
    loader = _loader(made)
    for _ in range(taken):
        next(loader)
    assert _loader_threads()
    begin = time.monotonic()
    loader.close()
    assert time.monotonic() - begin < 1
    assert not _loader_threads()
    loader.close()


def test_an_error_in_the_loop_ends_the_thread_too(made: Manifest) -> None:
    with pytest.raises(KeyError), _loader(made) as loader:
        next(loader).draws["absent"]
    assert not _loader_threads()
