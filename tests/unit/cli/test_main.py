"""The command line: help, recipes printed back, and one message for what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from dist_diffusion.config.load import load, load_train, to_yaml
from dist_diffusion.config.schema import EvaluateRecipe, SampleRecipe

DEMO = ROOT / "configs/demo"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dist_diffusion", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("train", "sample", "evaluate"))


def test_the_help_of_export_names_its_settings() -> None:
    shown = " ".join(run("export", "--help").stdout.split())
    assert "usage: dist-diffusion export [-h] RUN [key=value ...]" in shown
    assert "out=FILE: where to" in shown and "ema=NAME: which" in shown
    assert run("export").stderr.endswith("the following arguments are required: RUN\n")


def test_print_config_is_a_recipe_again(tmp_path: Path) -> None:
    done = run("train", str(DEMO / "diffusion.yaml"), "optim.lr=5e-4", "--print-config")
    assert done.returncode == 0, done.stderr
    (tmp_path / "again.yaml").write_text(done.stdout)
    expected = load_train(str(DEMO / "diffusion.yaml"), ["optim.lr=5e-4"])
    assert load_train(str(tmp_path / "again.yaml"), []) == expected


def test_the_demo_recipes_name_no_path() -> None:
    for name in ("diffusion", "classifier"):
        recipe = load_train(str(DEMO / f"{name}.yaml"), [])
        assert recipe.run_dir is None
        assert recipe.data.shards is None
    sample = load(SampleRecipe, str(DEMO / "sample.yaml"), [])
    assert (sample.model, sample.out, sample.guidance.classifier) == (None, None, None)
    assert load(EvaluateRecipe, str(DEMO / "evaluate.yaml"), []).judge is None
    assert "guidance:" in to_yaml(sample)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_errors_are_one_message_without_traceback(command: str, tmp_path: Path) -> None:
    verdict = tmp_path / "verdict.json"
    done = run(command, "nowhere.yaml", DIST_DIFFUSION_VERDICT=str(verdict))
    assert done.returncode == 2
    assert done.stderr == "dist-diffusion: error: nowhere.yaml: no such recipe\n"
    assert json.loads(verdict.read_text())["code"] == 2


def test_a_contradictory_launch_is_refused() -> None:
    done = run("train", str(DEMO / "diffusion.yaml"), OMPI_COMM_WORLD_RANK="2", OMPI_COMM_WORLD_SIZE="2")
    assert done.returncode == 2
    assert done.stderr.startswith("dist-diffusion: error")
