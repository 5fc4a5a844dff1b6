"""Small sources and shard folders."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_diffusion.data import shards, sources
from dist_diffusion.data.manifest import Manifest

CLASSES = ("ant", "bee", "cat")


def _write_class_tree(folder: Path, per_class: int) -> Path:
    """Photographs of noise: JPEG and PNG, of several sizes and modes."""
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            height, width = generator.integers(9, 40, size=2)
            pixels = generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
            extension, mode = (("jpg", "RGB"), ("png", "RGB"), ("JPEG", "L"), ("png", "RGBA"))[i % 4]
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i:04d}.{extension}")
    return folder


def _write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, *labels.shape)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.fixture(scope="session")
def class_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 20 images; not to be written to."""
    return _write_class_tree(tmp_path_factory.mktemp("tree"), per_class=20)


@pytest.fixture
def own_class_tree(tmp_path: Path) -> Path:
    """3 classes of 4 images, to be spoilt."""
    return _write_class_tree(tmp_path / "tree", per_class=4)


@pytest.fixture
def write_idx() -> Callable[[Path, str, np.ndarray, np.ndarray], None]:
    """Writes a pair of IDX files."""
    return _write_idx


@pytest.fixture
def idx_arrays() -> tuple[np.ndarray, np.ndarray]:
    """50 images of 7x5 pixels and their labels 0 ... 3, by arithmetic."""
    images = (np.arange(50 * 7 * 5) * 37 % 251).astype(np.uint8).reshape(50, 7, 5)
    return images, (np.arange(50) * 7 % 4).astype(np.uint8)


@pytest.fixture
def made(class_tree: Path, tmp_path: Path) -> Manifest:
    """60 images in shards of 17, 17, 17 and 9."""
    return shards.make(sources.open_source(str(class_tree)), str(tmp_path / "made"), 17, seed=0, say=lambda _: None)
