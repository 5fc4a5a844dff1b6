"""The task of a recipe."""

from dist_diffusion.config.schema import DiffusionRecipe, TrainRecipe
from dist_diffusion.tasks.classifier import ClassifierTask
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.task import Task


def build(recipe: TrainRecipe) -> Task:
    """The task of a resolved recipe."""
    return DiffusionTask(recipe) if isinstance(recipe, DiffusionRecipe) else ClassifierTask(recipe)
