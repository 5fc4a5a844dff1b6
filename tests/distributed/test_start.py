"""How a run starts: the dry run changes nothing, protected keys change on purpose alone; and which commits stay."""

import json
import os
import subprocess
from pathlib import Path

from support import ROOT, Launcher, column, rows, train_arguments

from dist_diffusion.storage import committed


def steps(run: Path) -> list[int]:
    return [found.marker["step"] for found in committed.scan(str(run / "checkpoints"))]


def test_the_dry_run_leaves_no_trace(train, workplace: Path) -> None:
    dry, _ = (train(f"dry-{flag}", 1, f"train.dry_run={flag}", "train.steps=4") for flag in ("true", "false"))
    for key in ("loss", "grad_norm", "batch_digest"):
        assert column(dry, key) == column(rows(workplace / "dry-false"), key)
    assert not (workplace / "dry-true" / "dry-run").exists()
    assert "dry run of a step and a checkpoint" in (workplace / "dry-true/logs/rank-0.log").read_text()


def test_a_checkpoint_that_cannot_be_written_shows_before_the_first_step(launcher: Launcher, workplace: Path) -> None:
    command = launcher.command(1, *train_arguments(workplace, "no-room"))
    # No file may grow over a megabyte: the state does not fit.
    result = subprocess.run(
        ["prlimit", "--fsize=1000000", "timeout", "-k", "5", "120", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert "the dry run could not write a checkpoint" in result.stderr and "rank-00000.safetensors" in result.stderr
    assert not (workplace / "no-room/metrics.jsonl").exists() and not (workplace / "no-room/dry-run").exists()


def test_protected_keys_change_on_purpose_alone(launcher: Launcher, workplace: Path) -> None:
    arguments = train_arguments(workplace, "changed")
    launcher.run(1, *arguments, "train.steps=4")
    other = [*arguments, "train.steps=6", "ema.decays=[0.5,0.9]", "checkpoint.export=[ema_1,ema_0]"]
    _, err = launcher.run(1, *other, code=2)
    assert "ema.decays: (0.9,) -> (0.5, 0.9)" in err and "allow_config_change=true" in err
    out, _ = launcher.run(1, *other, "allow_config_change=true")
    assert "changed since the commit: ema.decays: (0.9,) -> (0.5, 0.9)" in out
    assert "ema_0 is new: it begins at the weights of step 4" in out
    before = {name: (workplace / "changed" / name).read_bytes() for name in ("config.yaml", "exit.json")}
    assert b"allow_config_change: false" in before["config.yaml"]
    _, err = launcher.run(1, *other, "allow_config_change=true", "model.channels=64", "train.steps=8", code=2)
    assert "is of another network" in err and "init_from" in err
    assert before == {name: (workplace / "changed" / name).read_bytes() for name in before}
    more = [*other, "allow_config_change=true", "train.steps=8", "objective.timesteps=loss_aware"]
    out, _ = launcher.run(1, *more)
    assert "the commit has no losses of these 1000 timesteps" in out
    assert steps(workplace / "changed") == [6, 8]


def test_the_best_commit_stays(launcher: Launcher, workplace: Path) -> None:
    validation = [f"validation.shards={workplace / 'shards'}", "validation.num_samples=48"]
    keep = ["checkpoint.every=2", "checkpoint.keep=1", "checkpoint.keep_every=8", "train.steps=12", "optim.lr=0.01"]
    # The loss of the average falls, so what is best by the highest is the first one.
    best = ["checkpoint.best=loss", "checkpoint.best_is=highest"]
    launcher.run(1, *train_arguments(workplace, "best"), *validation, *keep, *best)
    found = [json.loads(line) for line in (workplace / "best/validation.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in found}
    before_the_last = {step: loss for step, loss in losses.items() if step < 12}
    assert steps(workplace / "best") == sorted({8, 12, max(before_the_last, key=before_the_last.__getitem__)})
    _, err = launcher.run(
        1, *train_arguments(workplace, "best"), *validation, "checkpoint.best=beauty", "train.steps=14", code=2
    )
    assert "checkpoint.best=beauty: the validation gives loss" in err
