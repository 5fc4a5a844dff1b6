"""`dist-diffusion export`: the named average of the named commit, whole, in a file of its own."""

from pathlib import Path

import pytest
import torch

from dist_diffusion.cli import export
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import CheckpointError, ConfigError, LaunchError, StorageError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.runs.layout import step_name
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.posthoc import snapshot_file
from dist_diffusion.weights.resolve import export_name, find

RECIPE = resolve(DiffusionRecipe(data=DataOptions(image_size=8), model=UNetOptions(channels=32)), num_classes=3)
ALONE = Topology(0, 1, 0, 1, "none", None, None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with commits of steps 5 and 10, of two averages each."""
    for step in (5, 10):
        folder = committed.stage(str(tmp_path / "run/checkpoints"), step_name(step), committed.new_attempt())
        for i, average in enumerate(("ema_0", "weights")):
            info = {"average": average, "step": step, "classes": ["a", "b", "c"]}
            files.save(f"{folder}/{export_name(average)}", {"x": torch.tensor([step + i / 2])}, RECIPE, info)
        names = [export_name("ema_0"), export_name("weights")]
        committed.mark(folder, committed.describe(folder, names), {"exports": ["ema_0", "weights"]})
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("suffix", "overrides", "expected", "said"),
    [
        ("", [], 10.0, "ema_0 of step 10, 3 classes"),
        ("@5", [], 5.0, "ema_0 of step 5, 3 classes"),
        ("@5", ["ema=weights"], 5.5, "weights of step 5"),
    ],
)
def test_the_named_export_is_copied(
    run: Path, suffix: str, overrides: list[str], expected: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "model.safetensors"
    out.write_text("of an earlier time")
    export.run(f"{run}{suffix}", [*overrides, f"out={out}"], ALONE)
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: diffusion model, {said}")
    copied = files.load(str(out))
    assert copied.tensors["x"].item() == expected
    assert copied.recipe == RECIPE
    average = overrides[0].removeprefix("ema=") if overrides else None
    assert out.read_bytes() == Path(find(f"{run}{suffix}", average)).read_bytes()
    assert sorted(path.name for path in run.parent.iterdir()) == ["model.safetensors", "run"]


def test_without_a_path_it_lies_in_the_run_named_by_average_and_step(run: Path) -> None:
    export.run(f"{run}@5", [], ALONE)
    export.run(str(run), [], ALONE)
    made = sorted(path.name for path in run.glob("*.safetensors"))
    assert made == ["export-ema_0-step-000000005.safetensors", "export-ema_0-step-000000010.safetensors"]


def test_wrong_commands(run: Path) -> None:
    source = find(str(run), None)
    with pytest.raises(ConfigError, match="is an export already"):
        export.run(source, [], ALONE)
    with pytest.raises(CheckpointError, match="no committed checkpoint of step 7"):
        export.run(f"{run}@7", [], ALONE)
    with pytest.raises(CheckpointError, match="has no export ema_1; it has ema_0, weights"):
        export.run(str(run), ["ema=ema_1"], ALONE)
    with pytest.raises(ConfigError, match="unknown key outt; did you mean 'out'"):
        export.run(str(run), ["outt=x"], ALONE)
    with pytest.raises(LaunchError, match="this launch has 2"):
        export.run(str(run), [], Topology(0, 2, 0, 2, "openmpi", None, None))
    Path(source).write_bytes(Path(source).read_bytes()[:-1] + b"?")
    with pytest.raises(StorageError, match="damaged"):
        export.run(str(run), [], ALONE)
    assert not list(run.glob("*.safetensors"))


def keep_averages(run: Path, step: int, *stds: float) -> None:
    folder = committed.stage(str(run / "averages"), step_name(step), committed.new_attempt())
    for std in stds:
        info = {"average": f"std_{std:g}", "step": step}
        files.save(f"{folder}/{snapshot_file(f'std_{std:g}')}", {"x": torch.tensor([step + std])}, RECIPE, info)
    names = {f"std_{std:g}": std for std in stds}
    content = {"format": 1, "step": step, "images": step, "updates": step, "stds": names}
    committed.mark(folder, committed.describe(folder, map(snapshot_file, names)), content)


def test_a_width_is_made_of_the_snapshots(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(1, 21):
        keep_averages(run, step, 0.05, 0.1)
    export.run(str(run), ["ema.std=0.07"], ALONE)
    made = run / "export-std_0.07-step-000000020.safetensors"
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{made}: diffusion model, std_0.07 of step 20, 3 classes")
    assert second.startswith("made of std_0.05, std_0.1 at 20 steps; its profile is 0.")
    assert files.load(str(made)).info["average"] == "std_0.07"

    export.run(f"{run}@7", ["ema.std=0.07", f"out={run}/early.safetensors"], ALONE)
    assert capsys.readouterr().out.startswith(f"{run}/early.safetensors: diffusion model, std_0.07 of step 7")


def test_a_profile_that_is_far_off_is_warned_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_averages(run, 30, 0.05, 0.1)
    export.run(str(run), ["ema.std=0.07"], ALONE)
    _, made_of, warning = capsys.readouterr().out.splitlines()
    assert made_of == "made of std_0.05, std_0.1 at 1 step; its profile is 4.80% off"
    assert warning.startswith("warning: that is not quite an average of std 0.07: more snapshots")


def test_wrong_widths(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"ema=ema_0 is one average, ema.std=0.07 another: give one"):
        export.run(str(run), ["ema=ema_0", "ema.std=0.07"], ALONE)
    with pytest.raises(ConfigError, match=r"unknown key ema.stdd; did you mean 'std'"):
        export.run(str(run), ["ema.stdd=0.07"], ALONE)
    with pytest.raises(ConfigError, match=r"ema.std.*wide"):
        export.run(str(run), ["ema.std=wide"], ALONE)
    with pytest.raises(ConfigError, match="is an export already"):
        export.run(find(str(run), None), ["ema.std=0.07"], ALONE)
    with pytest.raises(CheckpointError, match="has no snapshots"):
        export.run(str(run), ["ema.std=0.07"], ALONE)
    assert not list(run.glob("*.safetensors"))
