"""The loader and make_shards against bare loops, guided-diffusion's loader and webdataset's pipeline."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.data_images import ImageSet, image_sets
from benchmarks.setting import check
from benchmarks.timing import Row, alternate_measured, compared, seconds_an_image
from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images, manifest, squares
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.order import Order, default_streams
from dist_diffusion.data.reader import Reader
from dist_diffusion.errors import InternalError

Write = Callable[[Path, Path, int, int], None]
"""From a tree to a folder of shards, of so many samples, by so many processes."""
MAKE_SHARDS = Path(__file__).resolve().parents[1] / "make_shards.py"
NUM_SHARDS = 24
PART_ROUNDS = 3
"""Of each set: enough for every worker of webdataset's to have some."""
SCALED_TOLERANCE = 3.0
"""Grey levels, the mean over a batch: what decoding at a fraction of the size may differ from halving by boxes."""


def bench_data(seconds: float, processes: int, small: Path | None, large: Path | None) -> list[Row]:
    """All rows, each candidate with as many processes; `small`, `large`: folders of real images, see `image_sets`."""
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        places = [Place(image_set, Path(folder) / str(image_set.size)) for image_set in image_sets(small, large)]
        for place in places:
            place.make(processes)
        small_images, photographs, large_originals = places
        for place in (small_images, photographs):
            check_pixels(place)
        check_scaled(large_originals)
        share = seconds / 14  # by the number of candidates
        return [
            *loader_rows(small_images, 4 * share, processes),
            *loader_rows(photographs, 4 * share, processes),
            scaled_row(large_originals, 2 * share, processes),
            write_row(small_images, 2 * share, processes),
            write_row(photographs, 2 * share, processes),
            memory_row(photographs, processes),
        ]


@dataclass(frozen=True)
class Place:
    """A set's files: the tree of class folders, and the shards made from it."""

    images: ImageSet
    folder: Path

    @property
    def tree(self) -> Path:
        """Of class folders."""
        return self.folder / "tree"

    @property
    def part(self) -> Path:
        """A tree of a tenth of it."""
        return self.folder / "part"

    @property
    def shards(self) -> Path:
        """With manifest and index."""
        return self.folder / "shards"

    @property
    def samples_per_shard(self) -> int:
        """For NUM_SHARDS of them."""
        return -(-self.images.num_files // NUM_SHARDS)

    def make(self, processes: int) -> None:
        """Write all."""
        self.images.write(self.tree)
        self.images.part.write(self.part)
        make_shards(self.tree, self.shards, self.samples_per_shard, processes)

    def order(self) -> Order:
        """The data order of a training run."""
        found = manifest.load(str(self.shards))
        batch = self.images.batch
        return Order(found.identities, 0, default_streams(batch), batch, DataOptions().shuffle_block)

    def loader(self, processes: int, random_flip: bool = True) -> Loader:
        """As training without draws starts it: mirrored at random, digests and checksums on."""
        found = manifest.load(str(self.shards))
        options = DataOptions(image_size=self.images.size, random_flip=random_flip, workers=processes)
        slots = range(self.images.batch)
        return Loader(found, manifest.index(found), self.order(), options, (), 0, slots, start_step=0)


def make_shards(tree: Path, out: Path, samples_per_shard: int, processes: int) -> None:
    """Our shards of a tree, by the command: what it starts must not import what is imported here."""
    options = ["--samples-per-shard", str(samples_per_shard), "--workers", str(processes)]
    # Without the variables of MPI, which the peer's import starts in this process behind Python's back.
    environment = dict(os.environ)
    command = [sys.executable, str(MAKE_SHARDS), str(tree), str(out), *options]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    if made.returncode:
        raise InternalError(f"make_shards failed: {made.stderr[-1000:]}")


def check_pixels(place: Place) -> None:
    """Full-size images must be the very ones that the released code's loader makes."""
    from benchmarks.data_peers import centre_square

    ours, files = first_batch(place)
    theirs = np.stack([centre_square(file, place.images.size) for file in files])
    check(f"loader, {place.images.title}; peer: guided-diffusion's", ours, torch.from_numpy(theirs).float(), 0.0)


def check_scaled(place: Place) -> None:
    """Images decoded at a fraction of their size must look like those decoded in full."""
    ours, files = first_batch(place)
    full = np.stack([np.asarray(squares.fit(images.decode(file), place.images.size)) for file in files])
    error = (ours - torch.from_numpy(full)).abs().mean()
    check(f"loader, {place.images.title}, on average; peer: decoded in full", error, torch.zeros(()), SCALED_TOLERANCE)


def first_batch(place: Place) -> tuple[torch.Tensor, list[bytes]]:
    """A batch that is not mirrored, in grey levels, float32 [n, H, W, 3], and the image files that it is made of."""
    with place.loader(processes=0, random_flip=False) as loader:
        batch = next(loader)
    found = manifest.load(str(place.shards))
    reader = Reader(found, manifest.index(found))
    files = [reader.image_bytes(row) for row in batch.ids.tolist()]
    return batch.images.permute(0, 2, 3, 1).float(), files


def loader_rows(place: Place, seconds: float, processes: int) -> list[Row]:
    """The loader against the bare decode loop of the same codec and against the other loaders, in one run."""
    from benchmarks import data_peers as peers

    image_set = place.images

    def measured(batches: Iterator[object]) -> float:
        return seconds_an_image(batches, image_set.batch)

    def ours() -> float:
        with place.loader(processes) as loader:
            return measured(loader)

    def guided() -> float:
        with closing(peers.guided_batches(place.tree, image_set.size, image_set.batch, processes)) as batches:
            return measured(batches)

    def webdataset() -> float:
        with closing(peers.webdataset_batches(place.shards, image_set.batch, processes)) as batches:
            return measured(batches)

    taken: dict[str, list[float]] = alternate_measured(
        {
            "ours": ours,
            "bare decode loop": partial(peers.bare_decode, image_set.originals, peers.decode, processes),
            "guided-diffusion's loader": guided,
            "webdataset's pipeline": webdataset,
        },
        seconds,
    )
    return [
        compared(f"loader, {image_set.title}; peer: {name}", 1, taken["ours"], taken[name])
        for name in taken
        if name != "ours"
    ]


def scaled_row(place: Place, seconds: float, processes: int) -> Row:
    """The loader, which decodes JPEGs at a fraction of their size, against decoding in full and resizing."""
    from benchmarks import data_peers as peers

    image_set = place.images

    def ours() -> float:
        with place.loader(processes) as loader:
            return seconds_an_image(loader, image_set.batch)

    peer = partial(peers.bare_decode, image_set.originals, peers.decode_and_resize(image_set.size), processes)
    taken: dict[str, list[float]] = alternate_measured({"ours": ours, "peer": peer}, seconds)
    return compared(f"loader, {image_set.title}; peer: bare decode loop, in full, then resized", 1, **taken)


def write_row(place: Place, seconds: float, processes: int) -> Row:
    """make_shards, with its shuffle, checks, checksums and index, against reading and writing alone.

    Seconds that the whole tree takes more than a tenth of it: a job as long as they are does not notice its start.
    """
    from benchmarks import data_peers as peers

    more = place.images.num_files - place.images.part.num_files

    def seconds_of(write: Write, tree: Path) -> float:
        with tempfile.TemporaryDirectory(dir=place.folder) as out:
            start = time.perf_counter()
            write(tree, Path(out), place.samples_per_shard, processes)
            return time.perf_counter() - start

    def measured(write: Write) -> Callable[[], float]:
        least = min(seconds_of(write, place.part) for _ in range(PART_ROUNDS))
        return lambda: (seconds_of(write, place.tree) - least) / more

    measures = {"ours": measured(make_shards), "peer": measured(peers.bare_write)}
    taken: dict[str, list[float]] = alternate_measured(measures, seconds)
    return compared(f"make_shards, write {place.images.title}; peer: bare read and write", 1, **taken)


def memory_row(place: Place, processes: int) -> Row:
    """Memory of this process and its decode processes, which must not grow from epoch to epoch."""
    steps = place.order().steps_per_epoch
    with place.loader(processes) as loader:
        after_one, after_two = (resident_after(loader, steps) for _ in range(2))
    name = f"memory, {place.images.title}, after two epochs; peer: after one"
    return Row(name, after_two, after_one, (after_two,) * 2, (after_one,) * 2, unit="MiB", less_is_better=True)


def resident_after(loader: Loader, steps: int) -> float:
    """MiB of this process and those that it has started, after so many steps more."""
    for _ in range(steps):
        next(loader)
    own = str(os.getpid())
    return sum(kib for pid, parent, kib in resident() if own in (pid, parent)) / 1024


def resident() -> Iterator[tuple[str, str, int]]:
    """(process, parent, resident KiB) of every process that can be seen."""
    for place in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has ended
            lines = dict(line.split(":", 1) for line in place.read_text().splitlines())
            yield place.parent.name, lines["PPid"].strip(), int(lines.get("VmRSS", "0 kB").split()[0])
