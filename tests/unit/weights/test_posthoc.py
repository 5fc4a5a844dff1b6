"""`ema.std`: an average of any width, made of the snapshots in RUN/averages, or a message that says why not."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, StorageError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.runs.layout import step_name
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.posthoc import FORMAT, reconstruct, snapshot_file
from dist_diffusion.weights.profiles import exponent, lerp_weight

RECIPE = resolve(DiffusionRecipe(data=DataOptions(image_size=8), model=UNetOptions(channels=32)), num_classes=3)
STEPS = 100
Tensors = dict[str, torch.Tensor]


def averages(std: float) -> list[Tensors]:
    """After each step of a random walk, by its updates; fp32, as an engine keeps them."""
    rng = np.random.default_rng(0)
    walk = {"a": rng.normal(size=(STEPS, 6, 5)).cumsum(axis=0), "b": rng.normal(size=(STEPS, 7)).cumsum(axis=0)}
    found, now = [], {name: torch.zeros(values.shape[1:]) for name, values in walk.items()}
    for i in range(STEPS):
        weight = lerp_weight(i + 1, exponent(std))
        now = {name: torch.lerp(now[name], torch.tensor(walk[name][i]).float(), weight) for name in walk}
        found.append(now)
    return found


def keep(run: Path, step: int, kept: Mapping[float, Tensors], updates: int | None = None) -> Path:
    folder = committed.stage(str(run / "averages"), step_name(step), committed.new_attempt())
    stds = {f"std_{std:g}": std for std in kept}
    for average, tensors in zip(stds, kept.values(), strict=True):
        info = {"average": average, "step": step, "images": 8 * step, "classes": ["x"]}
        files.save(f"{folder}/{snapshot_file(average)}", tensors, RECIPE, info)
    content = {"format": FORMAT, "step": step, "images": 8 * step, "updates": updates or step, "stds": stds}
    committed.mark(folder, committed.describe(folder, map(snapshot_file, stds)), content)
    return Path(folder)


def distance(one: Tensors, other: Tensors) -> float:
    """Relative to the first."""
    assert one.keys() == other.keys()
    differences = torch.cat([(one[name] - other[name]).flatten() for name in one])
    return float(differences.norm() / torch.cat([tensor.flatten() for tensor in one.values()]).norm())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots of two widths every ten steps."""
    folder = tmp_path_factory.mktemp("posthoc")
    narrow, wide = averages(0.05), averages(0.1)
    for step in range(10, STEPS + 1, 10):
        keep(folder, step, {0.05: narrow[step - 1], 0.1: wide[step - 1]})
    return folder


def test_a_width_between_is_its_running_average(run: Path) -> None:
    made, direct = reconstruct(str(run), None, 0.07), averages(0.07)
    assert distance(direct[-1], made.tensors) < 2e-3
    assert {tensor.dtype for tensor in made.tensors.values()} == {torch.float32}
    assert made.recipe == RECIPE
    assert made.info["average"] == "std_0.07"
    assert (made.info["step"], made.info["images"], made.info["classes"]) == (STEPS, 8 * STEPS, ["x"])
    assert 1e-3 < made.info["profile_error"] < 0.01
    parts = made.info["made_of"]
    assert [(part["average"], part["step"]) for part in parts[-2:]] == [("std_0.05", STEPS), ("std_0.1", STEPS)]
    assert len(parts) == 20
    assert sum(part["coefficient"] for part in parts) == pytest.approx(1.0)


def test_at_an_earlier_step_only_what_was_there_by_then_is_used(run: Path) -> None:
    made = reconstruct(str(run), 50, 0.07)
    assert distance(averages(0.07)[49], made.tensors) < 1e-2
    assert made.info["step"] == 50
    assert {part["step"] for part in made.info["made_of"]} == {10, 20, 30, 40, 50}


def test_a_width_that_was_kept_is_given_back(run: Path) -> None:
    kept = files.load(str(next((run / "averages").glob(f"{step_name(STEPS)}.*/std_0.05.safetensors"))))
    made = reconstruct(str(run), None, 0.05)
    assert distance(kept.tensors, made.tensors) < 1e-6
    assert made.info["profile_error"] < 1e-6


def test_one_snapshot_is_enough_for_its_own_width(tmp_path: Path) -> None:
    tensors = averages(0.1)[9]
    keep(tmp_path, 10, {0.1: tensors})
    assert distance(tensors, reconstruct(str(tmp_path), None, 0.1).tensors) == 0
    with pytest.raises(CheckpointError, match=r"has only std_0.1 of step 10 to make ema.std=0.07 from: train on"):
        reconstruct(str(tmp_path), None, 0.07)


def test_snapshots_without_an_update_between_count_once(tmp_path: Path) -> None:
    narrow, wide = averages(0.05), averages(0.1)
    for step, updates in ((40, 40), (80, 80), (90, 80)):
        keep(tmp_path, step, {0.05: narrow[updates - 1], 0.1: wide[updates - 1]}, updates)
    made = reconstruct(str(tmp_path), None, 0.07)
    assert {part["step"] for part in made.info["made_of"]} == {40, 90}
    assert distance(averages(0.07)[79], made.tensors) < 2e-2


@pytest.mark.parametrize("std", [-0.1, 0.0, 0.2887, 1.0, float("nan")])
def test_widths_that_cannot_be(run: Path, std: float) -> None:
    with pytest.raises(ConfigError, match=r"ema.std=.*: a relative width is more than 0 and less than 0.2887"):
        reconstruct(str(run), None, std)


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no snapshots.* trained with ema.stds, as \[0.05,0.1\]"):
        reconstruct(str(tmp_path), None, 0.07)
    with pytest.raises(CheckpointError, match="has no snapshot of step 45; it has 10, 20, 30"):
        reconstruct(str(run), 45, 0.07)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    narrow, wide = averages(0.05), averages(0.1)
    for step in (40, 80):
        keep(tmp_path, step, {0.05: narrow[step - 1], 0.1: wide[step - 1]})
    damaged = next((tmp_path / "averages").glob(f"{step_name(80)}.*/std_0.1.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match=r"std_0.1.safetensors is damaged: sha256"):
        reconstruct(str(tmp_path), None, 0.07)
    assert reconstruct(str(tmp_path), 40, 0.07).info["step"] == 40


def test_snapshots_of_two_networks_are_refused(tmp_path: Path) -> None:
    small = {"a": torch.zeros(6, 5)}
    keep(tmp_path, 40, {0.05: small, 0.1: small})
    keep(tmp_path, 80, {0.05: averages(0.05)[79], 0.1: averages(0.1)[79]})
    with pytest.raises(CheckpointError, match=r"is of another network than .*: 1 missing: b\nRemove the folders"):
        reconstruct(str(tmp_path), None, 0.07)
