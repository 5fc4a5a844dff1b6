"""Tiny shards and recipes for the tests of real launches."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Launcher, make_shards, rows, train_arguments

CLASSES = ("dark", "grey", "light")

DIFFUSION = """
task: diffusion
data: {image_size: 8}
model: {channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: [4], num_head_channels: 32}
objective: {p_uncond: 0.2}
optim: {lr: 1.0e-4}
train: {steps: 12, global_batch: 24, log_every: 1}
ema: {decays: [0.9]}
checkpoint: {every: 4, keep: 2}
"""
CLASSIFIER = """
task: classifier
data: {image_size: 8}
model: {channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: [4], num_head_channels: 32}
train: {steps: 4, global_batch: 24, log_every: 1}
checkpoint: {every: 4}
"""


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    return Launcher()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 192 images in three classes, and the recipes."""
    folder = tmp_path_factory.mktemp("work")
    generator = np.random.default_rng(0)
    for level, name in enumerate(CLASSES):
        (folder / "source" / name).mkdir(parents=True)
        for i in range(64):
            pixels = generator.normal(40 + 80 * level, 20, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "source" / name / f"{i}.png")
    make_shards(folder / "source", folder / "shards", "--samples-per-shard", "50")
    (folder / "diffusion.yaml").write_text(DIFFUSION)
    (folder / "classifier.yaml").write_text(CLASSIFIER)
    return folder


@pytest.fixture(scope="session")
def train(launcher: Launcher, workplace: Path) -> Callable[..., list[dict]]:
    """Runs a training command to its end and gives its metrics rows."""

    def run(name: str, ranks: int, *overrides: str, recipe: str = "diffusion") -> list[dict]:
        launcher.run(ranks, *train_arguments(workplace, name, recipe), *overrides)
        return rows(workplace / name)

    return run
