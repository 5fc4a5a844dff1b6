"""What a commit leaves in RUN/averages, and what a start makes of what it finds there."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from dist_diffusion.config.load import to_dict
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe, EmaOptions, TrainOptions
from dist_diffusion.engine import slices
from dist_diffusion.engine.layout import Segment
from dist_diffusion.engine.snapshots import Snapshots, is_due
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.runs.layout import step_name
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.resolve import export_name

RECIPE = resolve(
    DiffusionRecipe(
        data=DataOptions(image_size=8),
        model=UNetOptions(channels=32),
        train=TrainOptions(steps=100),
        ema=EmaOptions(decays=(0.9,), stds=(0.05, 0.1)),
    ),
    num_classes=3,
)
A, B = torch.arange(6.0).view(2, 3), torch.arange(10.0, 14.0)


def commit(run: Path, step: int, number: int = 1) -> committed.Committed:
    """Of two ranks, each with a part of a (2 x 3) and b (4); exports std_0.1."""
    folder = committed.stage(str(run / "checkpoints"), step_name(step), committed.new_attempt())
    line = torch.cat([A.flatten(), B])
    table = [[Segment("a", 0, 0, 5)], [Segment("a", 5, 0, 1), Segment("b", 0, 1, 4)]]
    for rank, segments in enumerate(table):
        part = line[5 * rank : 5 * rank + 5]
        tensors = {"0.std_0.05": part.clone(), "0.std_0.1": 2 * part, "0.ema_0": 3 * part}
        slices.write(slices.Snapshot([segments], tensors), os.path.join(folder, slices.rank_file(rank)))
    marker: dict[str, Any] = {
        "step": step,
        "images": 8 * step,
        "recipe": to_dict(RECIPE),
        "exports": ["std_0.1"],
        "state": {"world_size": 2, "optimizer_step": step - 2.0, "shapes": {"a": [2, 3], "b": [4]}},
        "extra": {"commits": number, "classes": ["x"]},
    }
    info = {"average": "std_0.1", "step": step}
    files.save(f"{folder}/{export_name('std_0.1')}", {"a": 2 * A, "b": 2 * B}, RECIPE, info)
    committed.mark(folder, committed.describe(folder, [export_name("std_0.1")]), marker)
    return committed.scan(str(run / "checkpoints"))[-1]


def snapshots(run: Path, holds: bool = True) -> Snapshots:
    return Snapshots(str(run / "averages"), committed.new_attempt(), lambda: holds)


def test_a_commit_leaves_its_profiles(tmp_path: Path) -> None:
    made = commit(tmp_path, 10)
    assert snapshots(tmp_path).keep(made.path, RECIPE, made.marker) is None
    (found,) = committed.scan(str(tmp_path / "averages"))
    committed.verify(found)
    assert found.name == step_name(10)
    assert (found.marker["step"], found.marker["images"], found.marker["updates"]) == (10, 80, 8)
    assert found.marker["stds"] == {"std_0.05": 0.05, "std_0.1": 0.1}
    assert sorted(found.marker["files"]) == ["std_0.05.safetensors", "std_0.1.safetensors"]
    kept = files.load(f"{found.path}/std_0.05.safetensors")
    assert torch.equal(kept.tensors["a"], A)
    assert torch.equal(kept.tensors["b"], B)
    assert kept.info == {
        "average": "std_0.05", "step": 10, "images": 80, "updates": 8, "commits": 1, "classes": ["x"]
    }  # fmt: skip
    # What the commit exports takes no room a second time.
    assert os.path.samefile(f"{found.path}/std_0.1.safetensors", f"{made.path}/{export_name('std_0.1')}")
    committed.prune(str(tmp_path / "checkpoints"), ["none of these"])
    committed.verify(found)


def test_every_so_many_commits_and_the_last(tmp_path: Path) -> None:
    marker = commit(tmp_path, 10).marker
    recipe = dataclasses.replace(RECIPE, ema=EmaOptions(stds=(0.05,), snapshot_every_commits=3))

    def due(step: int, number: int, updates: float = 5.0) -> bool:
        changes = {"step": step, "extra": {"commits": number}, "state": {"optimizer_step": updates}}
        return is_due(recipe, {**marker, **changes})

    assert [due(10 * n, n) for n in range(1, 8)] == [False, False, True, False, False, True, False]
    assert due(100, 8)
    assert not due(30, 3, updates=0.0)
    assert not is_due(dataclasses.replace(recipe, ema=EmaOptions()), marker)


def test_a_snapshot_that_fails_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    made = commit(tmp_path, 10)
    said = snapshots(tmp_path, holds=False).keep(made.path, RECIPE, made.marker)
    assert said is not None
    assert said.startswith("the averages of step 10 are not kept, the commit stands: another process has taken over")
    assert os.listdir(tmp_path / "averages") == []
    (Path(made.path) / slices.rank_file(1)).unlink()
    said = snapshots(tmp_path).keep(made.path, RECIPE, made.marker)
    assert said is not None
    assert f"cannot read {made.path}" in said
    assert os.listdir(tmp_path / "averages") == []


def test_a_start_makes_what_the_one_before_left_out(tmp_path: Path) -> None:
    made = commit(tmp_path, 10)
    committed.stage(str(tmp_path / "averages"), step_name(10), committed.new_attempt())
    (said,) = snapshots(tmp_path).begin_at(made)
    assert said.endswith("which was never committed")
    (found,) = committed.scan(str(tmp_path / "averages"))
    assert found.name == step_name(10)
    assert snapshots(tmp_path).begin_at(made) == []
    assert committed.scan(str(tmp_path / "averages")) == [found]


def test_a_start_sets_later_ones_aside(tmp_path: Path) -> None:
    first, second = commit(tmp_path, 10), commit(tmp_path, 20)
    for made in (first, second):
        snapshots(tmp_path).keep(made.path, RECIPE, made.marker)
    (said,) = snapshots(tmp_path).begin_at(first)
    assert "step-000000020" in said and said.endswith(".stale: this run begins before it")
    assert [found.name for found in committed.scan(str(tmp_path / "averages"))] == [step_name(10)]
    (said,) = snapshots(tmp_path).begin_at(None)
    assert "step-000000010" in said
    assert len(os.listdir(tmp_path / "averages")) == 2
