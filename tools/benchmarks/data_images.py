"""The image files that the data benchmark reads: made up by a fixed seed, or real ones where the user has some."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dist_diffusion.data import images, squares
from dist_diffusion.errors import ConfigError

SMALL_SIZE, PHOTOGRAPH_SIZE, SCALED_SIZE = 32, 256, 64
"""At which the three sets are read, in pixels."""
SMALL_QUALITY, PHOTOGRAPH_QUALITY = 75, 90
"""CIFAR-10's JPEGs are of the first."""
LARGE_SIZES = ((500, 375), (1280, 960))
NUM_CLASSES = 10
CANVAS_SIZE, NUM_CANVASES, NUM_DISCS = 1536, 6, 400
EXTENSIONS = (".jpg", ".jpeg", ".JPEG")


@dataclass(frozen=True)
class ImageSet:
    """Different JPEG files, and a tree of class folders that has each of them under `repeats` names.

    Repeated, because what is started at an epoch's begin or with a job must not be what is measured.
    """

    title: str
    size: int
    """At which it is read."""
    batch: int
    originals: Sequence[bytes]
    repeats: int

    @property
    def num_files(self) -> int:
        """In the tree."""
        return len(self.originals) * self.repeats

    @property
    def part(self) -> "ImageSet":
        """At most a tenth of the files."""
        return replace(self, originals=self.originals[: -(-self.num_files // 10)], repeats=1)

    def write(self, folder: Path) -> None:
        """The tree: classN/classN_NNNNNN.jpg; the peer takes what stands before the underscore for the class."""
        for label in range(NUM_CLASSES):
            (folder / f"class{label}").mkdir(parents=True)
        for i, original in enumerate(self.originals):
            place = folder / f"class{i % NUM_CLASSES}"
            first = place / f"{place.name}_{i:06d}.jpg"
            first.write_bytes(original)
            for j in range(1, self.repeats):
                os.link(first, place / f"{place.name}_{j * len(self.originals) + i:06d}.jpg")


def image_sets(small: Path | None, large: Path | None) -> tuple[ImageSet, ImageSet, ImageSet]:
    """32-pixel images, 256-pixel squares, and large originals to be read at 64 pixels; `small`, `large`: real ones.

    `small` holds class folders of 32-pixel JPEGs; from the photographs in `large` the squares are cut.
    """
    rng = np.random.default_rng(0)
    canvases = [canvas(rng, CANVAS_SIZE) for _ in range(NUM_CANVASES)] if small is None or large is None else []
    if small is None:
        small_files = made_up(rng, canvases, (SMALL_SIZE, SMALL_SIZE), 8_000, SMALL_QUALITY)
    else:
        small_files = real(small, 8_000)
        check_sizes(small, small_files)
    if large is None:
        photographs = made_up(rng, canvases, (PHOTOGRAPH_SIZE, PHOTOGRAPH_SIZE), 1_200, PHOTOGRAPH_QUALITY)
        originals = [file for size in LARGE_SIZES for file in made_up(rng, canvases, size, 60, PHOTOGRAPH_QUALITY)]
    else:
        originals = real(large, 1_200)
        photographs = [
            encode(squares.fit(images.decode(file), PHOTOGRAPH_SIZE), PHOTOGRAPH_QUALITY) for file in originals
        ]
    return (
        repeated(f"{SMALL_SIZE}-pixel JPEGs", SMALL_SIZE, 128, small_files, 48_000),
        repeated(f"{PHOTOGRAPH_SIZE}-pixel photographs", PHOTOGRAPH_SIZE, 64, photographs, 9_600),
        repeated(f"large originals at {SCALED_SIZE} pixels", SCALED_SIZE, 64, originals, 1_920),
    )


def repeated(title: str, size: int, batch: int, originals: Sequence[bytes], num_files: int) -> ImageSet:
    """A set of about so many files."""
    return ImageSet(title, size, batch, originals, max(1, round(num_files / len(originals))))


def made_up(
    rng: np.random.Generator, canvases: Sequence[np.ndarray], size: tuple[int, int], count: int, quality: int
) -> list[bytes]:
    """JPEGs cut from the canvases at random places, each at a contrast of its own; `size` is (width, height)."""
    width, height = size
    files = []
    for i in range(count):
        whole = canvases[i % len(canvases)]
        left, top = rng.integers(whole.shape[1] - width), rng.integers(whole.shape[0] - height)
        window = whole[top : top + height, left : left + width]
        mean, spread = window.mean(axis=(0, 1)), window.std()
        contrast = rng.uniform(30, 70) / spread
        pixels = 128 + (window - mean) * contrast + rng.uniform(-30, 30, 3).astype(np.float32)
        files.append(encode(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), quality))
    return files


def canvas(rng: np.random.Generator, size: int) -> np.ndarray:
    """float32 [size, size, 3]: noise whose amplitude falls with frequency as in photographs, and edges.

    The edges are discs of all sizes over each other; colour varies less than brightness does.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]).astype(np.float32)
    frequency[0, 0] = np.inf
    planes = []
    for weight in (1.0, 0.25, 0.25):
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) / frequency**1.3)
        planes.append(weight * noise / noise.std())
    brightness, red, blue = planes
    image = np.stack([brightness + red, brightness, brightness + blue], axis=2).astype(np.float32)
    for _ in range(NUM_DISCS):
        draw_disc(rng, image)
    return image


def draw_disc(rng: np.random.Generator, image: np.ndarray) -> None:
    """Shift the colour inside a disc; radii r are drawn with a density that falls as r**-2."""
    size = len(image)
    radius = int(min(6 / rng.uniform(0.02, 1), size / 5))
    x, y = rng.integers(radius, size - radius, 2)
    rows, columns = np.ogrid[-radius:radius, -radius:radius]
    colour = rng.normal(0, 1) + rng.normal(0, 0.25, 3)
    part = image[y - radius : y + radius, x - radius : x + radius]
    part += (rows**2 + columns**2 < radius**2)[..., None] * colour.astype(np.float32)


def encode(image: Image.Image, quality: int) -> bytes:
    """As JPEG, with Pillow's default subsampling of colour."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def real(folder: Path, limit: int) -> list[bytes]:
    """The JPEGs anywhere under a folder, evenly chosen where they are more than `limit`."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in EXTENSIONS)
    if not paths:
        raise ConfigError(f"{folder} holds no JPEG files ({', '.join(EXTENSIONS)}): name a tree of class folders")
    return [path.read_bytes() for path in paths[:: -(-len(paths) // limit)]]


def check_sizes(folder: Path, files: Sequence[bytes]) -> None:
    """ConfigError where one is not of SMALL_SIZE: the peers stack what they decode."""
    for file in files:
        if (size := Image.open(io.BytesIO(file)).size) != (SMALL_SIZE, SMALL_SIZE):
            raise ConfigError(f"--small {folder} holds an image of {size[0]}x{size[1]}, not {SMALL_SIZE}x{SMALL_SIZE}")
