"""The points of a sweep: a pure function of its recipe."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass

from dist_diffusion.config.schema import SampleRecipe, SweepRecipe
from dist_diffusion.diffusion.options import GuidanceMode


@dataclass(frozen=True)
class Point:
    """A sampling job among others that are evaluated alike."""

    name: str
    """Of its folder, unique."""
    recipe: SampleRecipe


def folder_of(out: str, name: str) -> str:
    """Where a point's job lies."""
    return os.path.join(out, "points", name)


def guidance_points(recipe: SweepRecipe) -> list[Point]:
    """In the order of the recipe's modes, and of their scales."""
    return [_point(recipe, mode, *scales) for mode in recipe.modes for scales in _scales(recipe, mode)]


def _scales(recipe: SweepRecipe, mode: GuidanceMode) -> Iterator[tuple[float | None, float | None]]:
    """(cfg_scale, classifier_scale) of a mode's points; None where the mode does not use it."""
    if mode == "none":
        yield None, None
    elif mode == "cfg":
        yield from ((scale, None) for scale in recipe.cfg_scales)
    elif mode == "classifier":
        yield from ((None, scale) for scale in recipe.classifier_scales)
    else:
        yield from ((cfg, classifier) for cfg, classifier in recipe.both)


def _point(recipe: SweepRecipe, mode: GuidanceMode, cfg: float | None, classifier: float | None) -> Point:
    assert recipe.out is not None
    scales = {"cfg_scale": cfg, "classifier_scale": classifier}
    used = {key: float(scale) for key, scale in scales.items() if scale is not None}
    name = "-".join([mode, *(f"{scale:g}" for scale in used.values())])
    sample = SampleRecipe(
        model=recipe.model,
        out=folder_of(recipe.out, name),
        num_samples=recipe.num_samples,
        batch_size=recipe.batch_size,
        shard_size=recipe.shard_size,
        low_res=recipe.low_res,
        seed=recipe.seed,
        threads=recipe.threads,
        ema=recipe.ema,
        sampler=recipe.sampler,
        guidance=dataclasses.replace(recipe.guidance, mode=mode, **used),  # type: ignore[arg-type]
    )
    return Point(name, sample)
