"""What a recipe leaves to the data and to the process, filled in: nothing has to be retyped."""

import dataclasses

from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe, TrainRecipe
from dist_diffusion.diffusion.options import LEARNED_VARIANCES
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import UNetOptions


def resolve(recipe: TrainRecipe, num_classes: int) -> TrainRecipe:
    """The recipe with every derived option of its model given. `num_classes` is the manifest's."""
    model = recipe.model
    if model.image_size not in (None, recipe.data.image_size):
        raise ConfigError(
            f"model.image_size={model.image_size} and data.image_size={recipe.data.image_size}: leave the first out"
        )
    unconditional = isinstance(model, UNetOptions) and model.num_classes == 0
    if not unconditional and model.num_classes not in (None, num_classes):
        raise ConfigError(f"model.num_classes={model.num_classes}, but the manifest lists {num_classes} classes")
    classes = 0 if unconditional else num_classes
    if isinstance(recipe, ClassifierRecipe):
        options = dataclasses.replace(recipe.model, image_size=recipe.data.image_size, num_classes=classes)
        return dataclasses.replace(recipe, model=options)
    return dataclasses.replace(recipe, model=_unet(recipe, classes))


def _unet(recipe: DiffusionRecipe, classes: int) -> UNetOptions:
    learned = recipe.diffusion.variance in LEARNED_VARIANCES
    derived = {
        "out_channels": recipe.model.in_channels * (2 if learned else 1),
        "null_label": recipe.objective.p_uncond > 0,
    }
    for key, value in derived.items():
        given = getattr(recipe.model, key)
        if given not in (None, value):
            raise ConfigError(f"model.{key}={given}, but the rest of the recipe makes it {value}: leave it out")
    if recipe.objective.p_uncond and not classes:
        raise ConfigError("objective.p_uncond > 0 needs a class-conditional model: leave model.num_classes out")
    return dataclasses.replace(
        recipe.model,
        image_size=recipe.data.image_size,
        num_classes=classes,
        out_channels=derived["out_channels"],
        null_label=bool(derived["null_label"]),
    )
