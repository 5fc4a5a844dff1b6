"""A group of one process, and shards of three classes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed as dist

from dist_diffusion.data import shards, sources
from dist_diffusion.distributed.group import Group

CLASSES = ("dark", "grey", "light")


@pytest.fixture
def group() -> Iterator[Group]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield Group(0, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images, 8 x 8 pixels, in shards of 10; not to be written to."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("shards") / "made"
    generator = np.random.default_rng(0)
    for level, name in enumerate(CLASSES):
        (source / name).mkdir()
        for i in range(8):
            pixels = generator.normal(40 + 80 * level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(source / name / f"{i}.png")
    shards.make(sources.open_source(str(source)), str(out), 10, seed=0, say=lambda _: None)
    return out
