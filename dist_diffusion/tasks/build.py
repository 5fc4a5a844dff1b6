"""The task of a recipe."""

import torch

from dist_diffusion.config.schema import DiffusionRecipe, TrainRecipe
from dist_diffusion.diffusion.gaussians import make_process
from dist_diffusion.diffusion.schedules import betas
from dist_diffusion.tasks.classifier import ClassifierTask
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.task import Task


def build(recipe: TrainRecipe, device: torch.device) -> Task:
    """The task of a resolved recipe, its tables on `device`."""
    process = make_process(betas(recipe.diffusion)).to(device)
    return DiffusionTask(recipe, process) if isinstance(recipe, DiffusionRecipe) else ClassifierTask(recipe, process)
