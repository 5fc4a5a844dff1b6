"""Files to evaluate, and a network of eight features that costs nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist

from dist_diffusion.data import shards, sources
from dist_diffusion.distributed.group import Group, set_deterministic


class TinyNetwork:
    """Fixed random projections of the mean colours of the four quarters."""

    name = "tiny"
    distance_name = "FD-tiny"

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.to_features = generator.normal(size=(12, 8)).astype(np.float32)
        self.to_logits = generator.normal(size=(8, 1000)).astype(np.float32)

    def prepare(self, images: np.ndarray) -> np.ndarray:
        return images

    def features_and_logits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = images.shape[1] // 2
        quarters = [images[:, y : y + half, x : x + half].mean((1, 2)) for y in (0, half) for x in (0, half)]
        features = (np.concatenate(quarters, axis=1) / 64).astype(np.float32) @ self.to_features
        return features, features @ self.to_logits


@pytest.fixture
def group() -> Iterator[Group]:
    """One process. What sampling sets for all of it is taken back."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Group(0, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()
    set_deterministic(False)


@pytest.fixture
def network() -> TinyNetwork:
    return TinyNetwork()


def random_images(num: int, size: int, seed: int) -> np.ndarray:
    """Uint8 [num, size, size, 3] of large smooth blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, size=(num, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size))) for image in coarse])


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., str]:
    """Writes random images, with labels where given, in ADM's format."""

    def write(name: str, num: int, size: int = 16, seed: int = 0, labels: np.ndarray | None = None) -> str:
        path = tmp_path / name
        more = () if labels is None else (labels,)
        np.savez(path, random_images(num, size, seed), *more)
        return str(path)

    return write


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """30 images of two classes, 24 x 24 pixels, in shards of 13."""
    folder = tmp_path_factory.mktemp("source")
    for label, name in enumerate(("ant", "bee")):
        (folder / name).mkdir()
        for number, image in enumerate(random_images(15, 24, seed=label)):
            Image.fromarray(image).save(folder / name / f"{number:03d}.png")
    out = tmp_path_factory.mktemp("shards") / "made"
    shards.make(sources.open_source(str(folder)), str(out), 13, seed=0, say=lambda _: None)
    return str(out)
