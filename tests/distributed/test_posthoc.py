"""An average made after training is the one that a run of the same seed kept all along."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Launcher

from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.resolve import find

Train = Callable[..., list[dict]]
STEPS = 40
SETTINGS = (f"train.steps={STEPS}", "checkpoint.every=4", "ema.decays=[]", "train.log_every=10", "train.dry_run=false")


@pytest.fixture(scope="module")
def run(workplace: Path, train: Train) -> Path:
    """Of two kept widths, which commits every four steps; stopped and gone on with on two ranks on its way."""
    two = ("ema.stds=[0.05,0.1]", *SETTINGS)
    train("widths", 1, *two, "train.steps=20")
    # As if the process had been killed between its last commit and that commit's snapshot.
    (newest,) = (workplace / "widths/averages").glob("step-000000020.*")
    shutil.rmtree(newest)
    train("widths", 2, *two)
    return workplace / "widths"


def flat(path: str) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in files.load(path).tensors.values()])


def test_an_average_made_afterwards_is_the_one_kept_all_along(
    launcher: Launcher, run: Path, workplace: Path, train: Train
) -> None:
    train("direct", 1, "ema.stds=[0.05,0.1,0.07]", "checkpoint.export=[std_0.07,std_0.05,std_0.1]", *SETTINGS)
    out, _ = launcher.run(1, "export", str(run), "ema.std=0.07")
    made = run / "export-std_0.07-step-000000040.safetensors"
    assert out.startswith(f"{made}: diffusion model, std_0.07 of step 40, 3 classes")
    assert "made of std_0.05, std_0.1 at 10 steps; its profile is 0.75% off" in out

    info = files.header(str(made))[1]
    assert (info["step"], info["images"], info["updates"], info["profile_error"] < 0.01) == (40, 40 * 24, 40, True)
    direct, narrow, wide = (flat(find(str(workplace / "direct"), f"std_{std}")) for std in ("0.07", "0.05", "0.1"))
    error = (flat(str(made)) - direct).norm()
    assert error < 2e-5 * direct.norm()  # measured: 3.7e-6
    assert error < 0.02 * min((narrow - direct).norm(), (wide - direct).norm())
    assert load_model(str(made)).recipe.ema.stds == (0.05, 0.1)


def test_snapshots_outlive_their_commits_and_share_their_files(run: Path, workplace: Path) -> None:
    kept = committed.scan(str(run / "averages"))
    assert [snapshot.marker["step"] for snapshot in kept] == list(range(4, STEPS + 1, 4))
    assert len(committed.scan(str(run / "checkpoints"))) == 2
    for snapshot in kept:
        committed.verify(snapshot)
        assert sorted(snapshot.marker["files"]) == ["std_0.05.safetensors", "std_0.1.safetensors"]
    # The one that a kill had left out is there again, as it was.
    assert [snapshot.attempt for snapshot in kept if snapshot.marker["step"] == 20] == [kept[-1].attempt]
    # A commit's own export is not written twice.
    export = Path(find(str(run), "std_0.05"))
    assert export.samefile(Path(kept[-1].path) / "std_0.05.safetensors")


def test_an_earlier_step_and_what_cannot_be(launcher: Launcher, run: Path, workplace: Path) -> None:
    early = workplace / "early.safetensors"
    launcher.run(1, "export", f"{run}@20", "ema.std=0.12", f"out={early}")
    info = files.header(str(early))[1]
    assert (info["average"], info["step"], info["updates"]) == ("std_0.12", 20, 20)
    _, err = launcher.run(1, "export", f"{run}@21", "ema.std=0.07", code=2)
    assert "has no snapshot of step 21; it has 4, 8, 12" in err
    verdict = json.loads((run / "exit.json").read_text())
    assert verdict["code"] == 0
