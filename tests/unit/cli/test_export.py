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
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.resolve import export_name, find, step_name

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
