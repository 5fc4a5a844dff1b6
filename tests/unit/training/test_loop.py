"""What a run makes of steps that were skipped."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dist_diffusion.config.schema import DiffusionRecipe, EngineOptions
from dist_diffusion.engine.engine import StepResult, TrainingEngine
from dist_diffusion.errors import NonFiniteError
from dist_diffusion.training.loop import watch_for_divergence


def skipped(loss_scale: float | None) -> StepResult:
    return StepResult(torch.tensor(1.0), None, False, 1e-4, loss_scale)


def test_overflows_end_the_run_at_the_floor_alone() -> None:
    recipe = DiffusionRecipe(engine=EngineOptions(precision="fp16", loss_scale_floor=2, max_nonfinite_steps=2))
    engine: Any = SimpleNamespace(recipe=recipe)
    engine.at_the_floor = lambda scale: TrainingEngine.at_the_floor(engine, scale)
    said: list[str] = []
    console = SimpleNamespace(say=said.append)
    run: Any = SimpleNamespace(engine=engine, recipe=recipe, console=console, step=7, nonfinite_in_a_row=0)
    for scale in (16, 8, 4):
        watch_for_divergence(run, skipped(scale))
        assert f"overflow at loss scale {scale}" in said[-1] and run.nonfinite_in_a_row == 0
    watch_for_divergence(run, skipped(2))
    assert "gradients are not finite" in said[-1]
    with pytest.raises(NonFiniteError, match="for 2 steps in a row, up to step 7"):
        watch_for_divergence(run, skipped(2))
