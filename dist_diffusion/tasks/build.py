"""The task of a recipe."""

import torch

from dist_diffusion.config.schema import ClassifierRecipe, SuperResolutionRecipe, TrainRecipe
from dist_diffusion.tasks.classifier import ClassifierTask
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.noising import build_process
from dist_diffusion.tasks.super_resolution import SuperResolutionTask
from dist_diffusion.tasks.task import Task


def build(recipe: TrainRecipe, device: torch.device) -> Task:
    """The task of a resolved recipe, its tables on `device`."""
    process = build_process(recipe.diffusion, device)
    if isinstance(recipe, ClassifierRecipe):
        return ClassifierTask(recipe, process)
    if isinstance(recipe, SuperResolutionRecipe):
        return SuperResolutionTask(recipe, process)
    return DiffusionTask(recipe, process)
