"""A run on shards with samples that cannot be decoded: the same run on any layout, said aloud, and within a budget."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import Launcher, column, make_shards, train_arguments

SPOILT = ("grey/3.png", "light/40.png")


@pytest.fixture(scope="module")
def spoilt(workplace: Path) -> str:
    """Shards of 96 images, of which two have pixels that are not what their file's own checksum says."""
    generator = np.random.default_rng(1)
    source = workplace / "spoilt-source"
    for name in ("grey", "light"):
        (source / name).mkdir(parents=True)
        for i in range(48):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(source / name / f"{i}.png")
    for name in SPOILT:
        content = bytearray((source / name).read_bytes())
        content[content.index(b"IDAT") + 20] ^= 255
        (source / name).write_bytes(content)
    make_shards(source, workplace / "spoilt", "--samples-per-shard", "40")
    return f"data.shards={workplace / 'spoilt'}"


def test_every_layout_replaces_alike_and_says_so(
    train: Callable[..., list[dict]], spoilt: str, workplace: Path
) -> None:
    allowed = "data.max_replaced_share=0.05"
    alone = train("replaced-1", 1, spoilt, allowed, "data.workers=2", "train.steps=9")
    two = train("replaced-2", 2, spoilt, allowed, "train.steps=9")
    assert column(alone, "batch_digest") == column(two, "batch_digest")
    assert column(alone, "replaced_samples") == column(two, "replaced_samples")
    # 9 steps of 24 of 96 samples: two epochs and a step.
    assert 4 <= alone[-1]["replaced_samples"] <= 6
    named = [replaced for row in two for replaced in row.get("replaced", [])]
    assert named == [replaced for row in alone for replaced in row.get("replaced", [])]
    assert len(named) == two[-1]["replaced_samples"]
    assert {replaced["step"] for replaced in named} <= set(range(1, 10))
    log = (workplace / "replaced-2" / "logs" / "rank-0.log").read_text()
    for replaced in named:
        said = f"step {replaced['step']}: sample {replaced['key']} of shard {replaced['shard']} cannot be decoded ("
        assert said in log


def test_more_than_the_budget_ends_the_run(launcher: Launcher, spoilt: str, workplace: Path) -> None:
    _, err = launcher.run(2, *train_arguments(workplace, "budget"), spoilt, code=2)
    assert "samples could not be decoded up to step" in err and "data.max_replaced_share=0.001 of 96 images" in err
    _, err = launcher.run(1, *train_arguments(workplace, "fail"), spoilt, "data.undecodable=fail", code=2)
    assert "cannot be decoded" in err and "data.undecodable=replace" in err
