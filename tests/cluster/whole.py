"""The run that nothing happened to, and how one that something happened to is compared with it."""

import json
from pathlib import Path

import torch
from support import Launcher, column, rows, train_arguments

from dist_diffusion.runs import verdict
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.resolve import find

STEPS = 40
EVERY, KEEP = 3, 3
RECIPE = [f"train.steps={STEPS}", f"checkpoint.every={EVERY}", f"checkpoint.keep={KEEP}"]


def train_whole(launcher: Launcher, workplace: Path, *overrides: str) -> Path:
    launcher.run(2, *train_arguments(workplace, "whole"), *RECIPE, *overrides)
    return workplace / "whole"


def faulty(moment: str, rank: int, calls: str) -> list[str]:
    """What a launch runs in the place of `dist-diffusion`."""
    return [str(Path(__file__).with_name("faulty.py")), moment, str(rank), calls]


def verified_steps(run_dir: Path) -> list[int]:
    """The steps of a run's commits, once every file of them is what its marker says."""
    found = committed.scan(str(run_dir / "checkpoints"))
    for commit in found:
        committed.verify(commit)
    return [commit.marker["step"] for commit in found]


def uncommitted(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    return [path for path in sorted(folder.glob("*")) if not (path / committed.MARKER).exists()]


def check_rows(found: list[dict], whole: Path) -> None:
    """To the last bit."""
    expected = {row["step"]: row for row in rows(whole)}
    for row in found:
        for key in ("batch_digest", "loss", "grad_norm"):
            assert row[key] == expected[row["step"]][key], f"{key} of step {row['step']}"


def check_it_is_the_whole(run_dir: Path, whole: Path) -> None:
    """Losses, digests and the average, to the last bit; also of the steps that were lost and done again."""
    found, stale = rows(run_dir), run_dir / "metrics.stale.jsonl"
    assert column(found, "step") == column(rows(whole), "step")
    check_rows(found, whole)
    if stale.exists():
        check_rows([json.loads(line) for line in stale.read_text().splitlines()], whole)
    exports = [files.load(find(str(path), None)).tensors for path in (run_dir, whole)]
    torch.testing.assert_close(*exports, rtol=0, atol=0)
    assert uncommitted(run_dir) == []
    said = verdict.read(str(run_dir / "exit.json"))
    assert said is not None and (said.code, said.step) == (0, found[-1]["step"])
    assert not (run_dir / "lease.json").exists()
    assert not (run_dir / "dry-run").exists()
