import dataclasses
import hashlib
import itertools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images, manifest, shards, sources, squares
from dist_diffusion.data.loader import PREFETCH_STEPS, STEPS_IN_WORK, Batch, Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, rank_slots
from dist_diffusion.data.reader import Reader
from dist_diffusion.draws import Bernoulli, Normal, Uniform, normal, uniform
from dist_diffusion.errors import DataError, InternalError

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
    workers: int = 0,
) -> list[Batch]:
    options = DataOptions(image_size=8, random_flip=random_flip, random_crop=random_crop, workers=workers)
    with _loader(made, slots, start, options) as loader:
        return list(itertools.islice(loader, steps))


def _loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-loader"]


@pytest.mark.parametrize(("random_crop", "workers"), [(False, 0), (True, 0), (True, 2)])
def test_a_batch_is_what_order_images_and_draws_say(made: Manifest, random_crop: bool, workers: int) -> None:
    rows = manifest.index(made)
    reader = Reader(made, rows)
    order = _order(made)
    flips = []
    for step, batch in enumerate(_load(made, steps=7, random_crop=random_crop, workers=workers)):  # 5 are an epoch
        assert batch.step == step
        assert batch.ids.tolist() == order.ids(step).tolist()
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (BATCH, 3, 8, 8))
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == rows["label"][order.ids(step)].tolist()
        for slot, row in enumerate(order.ids(step).tolist()):
            j = step * BATCH + slot
            crop = (uniform(SEED, "crop_size", j), uniform(SEED, "crop_x", j), uniform(SEED, "crop_y", j))
            square = images.to_uint8(squares.square(reader.image_bytes(row), 8, crop if random_crop else None))
            flips.append(uniform(SEED, "flip", j) < 0.5)
            expected = square[:, ::-1] if flips[-1] else square
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


def _decode_processes() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "decode_worker"], capture_output=True, check=False)
    return [int(number) for number in found.stdout.split()]


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
    with _loader(made, options=dataclasses.replace(OPTIONS, workers=1)) as loader:
        assert [next(loader).step, next(loader).step] == [0, 1]
        with pytest.raises(DataError, match=rf"sample \d+ of shard {path} .*is damaged"):
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


@pytest.mark.parametrize(("taken", "workers"), [(0, 0), (1, 0), (20, 0), (1, 2)])
def test_close_ends_the_thread(made: Manifest, taken: int, workers: int) -> None:
    loader = _loader(made, options=dataclasses.replace(OPTIONS, workers=workers))
    for _ in range(taken):
        next(loader)
    assert _loader_threads()
    begin = time.monotonic()
    loader.close()
    assert time.monotonic() - begin < 1
    assert not _loader_threads()
    assert not _decode_processes()
    loader.close()


def test_an_error_in_the_loop_ends_the_thread_too(made: Manifest) -> None:
    with pytest.raises(KeyError), _loader(made) as loader:
        next(loader).draws["absent"]
    assert not _loader_threads()


def test_resuming_costs_the_same_at_any_step(made: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 0, 10 and 10 million: as many reads, and of nothing but the samples of the steps that follow."""
    reads: list[tuple[int, int]] = []
    opened: list[str] = []
    real_read, real_open = os.pread, os.open

    def counted_read(descriptor: int, length: int, offset: int) -> bytes:
        reads.append((length, offset))
        return real_read(descriptor, length, offset)

    def counted_open(path: str, *arguments: int, **more: int) -> int:
        opened.append(str(path))
        return real_open(path, *arguments, **more)

    rows, order, slots = manifest.index(made), _order(made), range(3, 9)
    monkeypatch.setattr(os, "pread", counted_read)
    monkeypatch.setattr(os, "open", counted_open)
    for start in (0, 10, 10_000_000):
        reads.clear()
        opened.clear()
        _load(made, steps=1, slots=slots, start=start)  # and those that it read ahead
        steps = len(reads) // len(slots)
        wanted = [rows[row] for step in range(start, start + steps) for row in order.ids(step)[3:9]]
        assert 1 <= steps <= PREFETCH_STEPS + 2
        assert reads[: steps * len(slots)] == [(int(row["length"]), int(row["offset"])) for row in wanted]
        assert len(opened) <= len(made.shards)


def test_a_batch_that_is_kept_is_not_written_over(made: Manifest) -> None:
    with _loader(made, options=dataclasses.replace(OPTIONS, workers=2)) as loader:
        kept = [next(loader) for _ in range(30)]
    for batch, again in zip(kept, _load(made, steps=30), strict=True):
        assert torch.equal(batch.images, again.images)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """64 streams of 256-pixel photographs: no more slabs than steps that are ahead, in work and in use."""
    source = tmp_path / "source" / "noise"
    source.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i in range(128):
        coarse = Image.fromarray(generator.integers(0, 256, size=(32, 40, 3), dtype=np.uint8))
        coarse.resize((320, 256), Image.Resampling.BICUBIC).save(source / f"{i}.jpg")
    made = shards.make(sources.open_source(str(source.parent)), str(tmp_path / "made"), 20, seed=0, say=lambda _: None)
    order = Order(made.identities, SEED, streams=64, batch=64, block=8)
    options = DataOptions(image_size=256, workers=2)
    with Loader(made, manifest.index(made), order, options, (), SEED, range(64), 0) as loader:
        for _ in range(4):
            next(loader)
        before = _resident_bytes()
        for _ in range(12):
            next(loader)
        pool = loader._decoder._pool  # type: ignore[attr-defined]
        assert len(pool._slabs._mapped) <= PREFETCH_STEPS + STEPS_IN_WORK + 3
        assert _resident_bytes() - before < 4 * (64 * 3 * 256**2)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_lost_decode_process_is_an_error(made: Manifest) -> None:
    with _loader(made, options=dataclasses.replace(OPTIONS, workers=1)) as loader:
        next(loader)
        (process,) = _decode_processes()
        os.kill(process, signal.SIGKILL)
        with pytest.raises(InternalError, match=rf"decode process {process} ended with signal 9"):
            for _ in range(20):
                next(loader)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_decode_process_outlives_a_signal_while_it_starts(made: Manifest, number: int) -> None:
    with _loader(made, options=dataclasses.replace(OPTIONS, workers=1)) as loader:
        os.kill(loader._decoder._pool._workers[0].process.pid, number)  # type: ignore[attr-defined]
        assert [next(loader).step for _ in range(3)] == [0, 1, 2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks in the working folder first")
def test_a_decode_process_is_of_the_ranks_own_package(
    made: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of another checkout that the command is run in."""
    other = tmp_path / "dist_diffusion" / "data"
    other.mkdir(parents=True)
    (other.parent / "__init__.py").touch()
    (other / "__init__.py").touch()
    (other / "decode_worker.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with _loader(made, options=dataclasses.replace(OPTIONS, workers=1)) as loader:
        assert next(loader).step == 0


def test_decode_processes_end_with_their_rank(made: Manifest) -> None:
    """Signals to the whole process group do not end them before their rank; kill -9 of the rank leaves none behind."""
    program = f"""
import os, signal, sys, time
from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import manifest
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.order import Order
made = manifest.load({made.folder!r})
order = Order(made.identities, 0, 4, 12, 8)
loader = Loader(made, manifest.index(made), order, DataOptions(image_size=8, workers=2), (), 0, range(12), 0)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
for _ in range(8):
    next(loader)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    os.killpg(0, number)
for _ in range(20):
    next(loader)
print(*[worker.process.pid for worker in loader._decoder._pool._workers], flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as rank:
        assert rank.stdout is not None
        processes = [int(number) for number in rank.stdout.readline().split()]
        assert len(processes) == 2 and all(_is_running(number) for number in processes)
        rank.kill()
    deadline = time.monotonic() + 10
    while any(_is_running(number) for number in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_is_running(number) for number in processes)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
