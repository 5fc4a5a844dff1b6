"""The names of a recipe's averages: of its files, its settings and its metrics."""

from dist_diffusion.config.schema import EmaOptions, TrainRecipe

MAX_STD = 12**-0.5
"""The relative width of the plain mean of all weights so far: profiles are narrower."""
WEIGHTS = "weights"
"""What is exported where there is no average."""


def ema_name(i: int) -> str:
    """Of the i-th of ema.decays."""
    return f"ema_{i}"


def std_name(std: float) -> str:
    """Of the power-function profile of this relative width."""
    return f"std_{std:g}"


def average_names(options: EmaOptions) -> tuple[str, ...]:
    """All that are kept: the exponential ones, then the profiles."""
    return (*(ema_name(i) for i in range(len(options.decays))), *map(std_name, options.stds))


def exported_averages(recipe: TrainRecipe) -> tuple[str, ...]:
    """The averages that each commit exports: the recipe's, else the first that is kept, else the weights."""
    return recipe.checkpoint.export or average_names(recipe.ema)[:1] or (WEIGHTS,)


def same_average(name: str, now: EmaOptions, before: EmaOptions) -> str | None:
    """The name that one of `now`'s averages had with `before`'s settings; None where there was no such average."""
    mine = _definitions(now)[name]
    return next((other for other, definition in _definitions(before).items() if definition == mine), None)


def _definitions(options: EmaOptions) -> dict[str, tuple[str, float]]:
    kinds = [("decay", value) for value in options.decays] + [("std", value) for value in options.stds]
    return dict(zip(average_names(options), kinds, strict=True))
