"""What the loader and make_shards are compared with: bare loops, guided-diffusion's loader, webdataset's pipeline."""

import io
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.peer import image_datasets
from benchmarks.timing import WARM_UP_S, WINDOW_S

Decode = Callable[[bytes], object]
FORK = multiprocessing.get_context("fork")


def decode(data: bytes) -> np.ndarray:
    """The usual line."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_and_resize(size: int) -> Decode:
    """In full, then as the released code resizes and crops."""
    return lambda data: centre_square(data, size)


def centre_square(data: bytes, size: int) -> np.ndarray:
    """The released code's: uint8 [size, size, 3]."""
    return image_datasets.center_crop_arr(Image.open(io.BytesIO(data)).convert("RGB"), size)


def bare_decode(files: Sequence[bytes], decode: Decode, processes: int) -> float:
    """Seconds an image of processes that decode, over and over, the files that they have in memory."""
    barrier, counted = FORK.Barrier(processes), FORK.SimpleQueue()

    def work(part: Sequence[bytes]) -> None:
        _decode_for(part, decode, WARM_UP_S)
        barrier.wait()
        counted.put(_decode_for(part, decode, WINDOW_S))

    _in_processes(work, [files[i::processes] for i in range(processes)])
    return 1 / sum(counted.get() for _ in range(processes))


def _decode_for(files: Sequence[bytes], decode: Decode, seconds: float) -> float:
    """Images a second. The clock is asked seldom: asking takes a part of what a small image does."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        for i in range(done, done + 16):
            decode(files[i % len(files)])
        done += 16
    return done / (time.perf_counter() - start)


def guided_batches(folder: Path, size: int, batch: int, workers: int) -> Generator[object, None, None]:
    """guided-diffusion's loader over class folders, with labels; it mirrors at random by default.

    It asks for one worker; that it gets as many as there are cores is all that is changed.
    """

    def loader(dataset: Any, num_workers: int, **options: Any) -> DataLoader[Any]:
        return DataLoader(dataset, num_workers=workers, **options)

    image_datasets.DataLoader = loader
    yield from image_datasets.load_data(data_dir=str(folder), batch_size=batch, image_size=size, class_cond=True)


def webdataset_batches(folder: Path, batch: int, workers: int) -> Generator[object, None, None]:
    """webdataset's usual pipeline over our shards, images as they are: uint8 arrays, neither resized nor mirrored."""
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), repeat=True)
        .shuffle(1000)
        .decode("rgb8")
        .to_tuple("jpg", "cls")
        .batched(batch, partial=False)
    )
    yield from webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)


def bare_write(tree: Path, out: Path, samples_per_shard: int, processes: int) -> None:
    """Read the files of class folders and write them with TarWriter, to the disk; each process its part of the files.

    No checks, no shuffling, no index.
    """
    labels = {name: label for label, name in enumerate(sorted(os.listdir(tree)))}
    files = [(path, labels[path.parent.name]) for path in sorted(tree.glob("*/*"))]

    def work(rank: int) -> None:
        mine = files[rank::processes]
        for first in range(0, len(mine), samples_per_shard):
            _write_shard(out / f"{rank}-{first:08d}.tar", mine[first : first + samples_per_shard])

    _in_processes(work, range(processes))


def _write_shard(path: Path, files: Sequence[tuple[Path, int]]) -> None:
    with path.open("wb") as stream:
        with webdataset.TarWriter(stream, encoder=False) as tar:
            for i, (file, label) in enumerate(files):
                tar.write({"__key__": f"{i:06d}", "cls": str(label).encode(), "jpg": file.read_bytes()})
        stream.flush()
        os.fsync(stream.fileno())


def _in_processes(work: Callable[[Any], None], parts: Sequence[Any]) -> None:
    processes = [FORK.Process(target=work, args=(part,)) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking beside torch's idle threads, as DataLoader does
        for process in processes:
            process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "a process of the peer failed"
