"""What the types cannot say of sampling and sweep recipes."""

import itertools
import math

from dist_diffusion.config.points import guidance_points
from dist_diffusion.config.ranges import above_zero, in_range, require
from dist_diffusion.config.schema import SampleRecipe, SweepRecipe
from dist_diffusion.diffusion.options import GuidanceOptions, SamplerOptions
from dist_diffusion.errors import ConfigError


def check_sampler(key: str, sampler: SamplerOptions) -> None:
    """Sampler settings that cannot be; `key` is where they stand in the recipe."""
    if not 0 <= sampler.eta <= 1:
        raise ConfigError(f"{key}.eta={sampler.eta}: expected 0 to 1")
    if sampler.eta and sampler.name != "ddim":
        raise ConfigError(f"{key}.eta={sampler.eta} is DDIM's; {key}.name is {sampler.name}")
    if not 0 < sampler.sigma_min < sampler.sigma_max:
        raise ConfigError(
            f"{key}.sigma_min={sampler.sigma_min}, {key}.sigma_max={sampler.sigma_max}: expected the first above 0 and "
            "below the second"
        )
    # Its roots of sigma_min and sigma_max are to be told apart, and to stay finite.
    in_range(sampler, "rho", 1, 1000, prefix=key)
    above_zero(sampler, "churn_noise", key)
    for name in ("churn", "churn_min", "churn_max"):
        in_range(sampler, name, 0, prefix=key)
    if sampler.churn and sampler.name not in ("euler", "heun"):
        raise ConfigError(f"{key}.churn={sampler.churn} is of euler and heun; {key}.name is {sampler.name}")


def check_guidance(guidance: GuidanceOptions, sampler: SamplerOptions) -> None:
    """Guidance settings that cannot be, alone or with the sampler."""
    key = "guidance"
    if guidance.interval is not None and not 0 <= guidance.interval[0] < guidance.interval[1]:
        raise ConfigError(f"{key}.interval={list(guidance.interval)}: expected two values of sigma / alpha, ascending")
    for name in ("cfg_scale", "classifier_scale", "auto_scale"):
        if not math.isfinite(getattr(guidance, name)):
            raise ConfigError(f"{key}.{name}={getattr(guidance, name)}: expected a number")
    in_range(guidance, "cfg_rescale", 0, 1, prefix=key)
    in_range(guidance, "apg_eta", 0, prefix=key)
    in_range(guidance, "apg_momentum", -1, 1, prefix=key)
    above_zero(guidance, "classifier_temperature", key)
    for name in ("apg_norm", "gradient_clamp"):
        if getattr(guidance, name) is not None:
            above_zero(guidance, name, key)
    if guidance.cfg_plus_plus and guidance.mode in ("cfg", "both"):
        in_range(guidance, "cfg_scale", 0, 1, prefix=key)
        if sampler.eta or sampler.name not in ("ddim", "euler"):
            raise ConfigError(
                f"{key}.cfg_plus_plus is for sampler.name=euler, and ddim with sampler.eta=0; this is {sampler.name}, "
                f"eta {sampler.eta}"
            )


def check_sample(recipe: SampleRecipe) -> None:
    """Settings of a sampling job that contradict each other."""
    require(recipe, "model", "out")
    for key in ("num_samples", "batch_size", "shard_size", "threads"):
        in_range(recipe, key, 1)
    if recipe.shard_size % recipe.batch_size:
        raise ConfigError(f"shard_size={recipe.shard_size} is not a multiple of batch_size={recipe.batch_size}")
    if recipe.guidance.mode in ("classifier", "both"):
        require(recipe, "guidance.classifier")
    if recipe.guidance.auto_scale != 1:
        require(recipe, "guidance.auto_model")
    check_sampler("sampler", recipe.sampler)
    check_guidance(recipe.guidance, recipe.sampler)


def check_sweep(recipe: SweepRecipe) -> None:
    """Settings of a sweep that contradict each other, or that make no points."""
    require(recipe, "model", "out", "reference")
    in_range(recipe, "num_reference", 1)
    in_range(recipe, "grid_images", 0)
    _check_scales(recipe)
    points = guidance_points(recipe)
    for point in points:
        check_sample(point.recipe)
    names = [point.name for point in points]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"the sweep has {', '.join(twice)} more than once: give each mode and scale once")


def _check_scales(recipe: SweepRecipe) -> None:
    defaults = GuidanceOptions()
    for key in ("mode", "cfg_scale", "classifier_scale"):
        if getattr(recipe.guidance, key) != getattr(defaults, key):
            raise ConfigError(
                f"guidance.{key}={getattr(recipe.guidance, key)}: a sweep's points have their own, leave it out and "
                "give modes, cfg_scales, classifier_scales and both"
            )
    if not recipe.modes:
        raise ConfigError("modes is empty: expected some of none, cfg, classifier, both")
    for mode, key in (("cfg", "cfg_scales"), ("classifier", "classifier_scales"), ("both", "both")):
        if mode in recipe.modes and not getattr(recipe, key):
            raise ConfigError(f"modes has {mode}, but {key} is empty: give its scales, or leave the mode out of modes")
    for pair in recipe.both:
        # OmegaConf does not look into lists of lists.
        if len(pair) != 2 or not all(isinstance(scale, int | float) for scale in pair):
            raise ConfigError(f"both holds {list(pair)}: expected pairs of numbers, [cfg_scale, classifier_scale]")
    for scale in (*recipe.cfg_scales, *recipe.classifier_scales, *itertools.chain(*recipe.both)):
        if not math.isfinite(scale):
            raise ConfigError(f"the sweep has a scale of {scale}: expected a number")
