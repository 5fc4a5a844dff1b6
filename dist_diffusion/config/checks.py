"""What the types cannot say of a recipe: found before anything is started."""

import functools
from typing import Any

from dist_diffusion.config.schema import (
    DiffusionRecipe,
    EvaluateRecipe,
    NllRecipe,
    SampleRecipe,
    SuperResolutionRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import LEARNED_VARIANCES, SamplerOptions
from dist_diffusion.errors import ConfigError

MIN_TIMESTEPS = 21
"""The linear schedule's last beta is 20 / T: below 1 only from here on."""


def require(recipe: object, *keys: str) -> None:
    """ConfigError for the first of `keys` that is not given."""
    for key in keys:
        if get(recipe, key) is None:
            raise ConfigError(f"{key} is not given: add {key}=... to the command line or the recipe")


def get(recipe: object, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), recipe)


POSITIVE = (
    "threads",
    "train.steps",
    "train.global_batch",
    "train.log_every",
    "checkpoint.every",
    "engine.max_nonfinite_steps",
    "data.image_size",
    "data.shuffle_block",
)


def check_train(recipe: TrainRecipe, world_size: int) -> None:
    """Settings that contradict each other or the number of ranks."""
    require(recipe, "run_dir", "data.shards")
    batch, micro = recipe.train.global_batch, recipe.train.micro_batch
    for key in POSITIVE:
        at_least(recipe, key, 1)
    at_least(recipe, "checkpoint.keep", 0)
    # Rank 0 may watch another host's lease for a minute while the other ranks wait in a collective.
    at_least(recipe, "engine.timeout_s", 120)
    if batch % world_size:
        raise ConfigError(f"train.global_batch={batch} is not divisible by the {world_size} ranks")
    if micro is not None and (micro < 1 or (batch // world_size) % micro):
        raise ConfigError(f"train.micro_batch={micro} does not divide a rank's share of {batch // world_size} samples")
    streams = recipe.data.canonical_streams
    if streams is not None and (streams < 1 or batch % streams):
        raise ConfigError(f"data.canonical_streams={streams} does not divide train.global_batch={batch}")
    _check_engine(recipe)
    _check_exports(recipe)
    _check_numbers(recipe)
    if isinstance(recipe, SuperResolutionRecipe):
        _check_super_resolution(recipe)
    if isinstance(recipe, DiffusionRecipe):
        _check_objective(recipe)
        _check_preview(recipe)


def at_least(recipe: object, key: str, smallest: int) -> None:
    """ConfigError where a number that is given is smaller."""
    value = get(recipe, key)
    if value is not None and value < smallest:
        raise ConfigError(f"{key}={value}: expected {smallest} or more")


def _check_engine(recipe: TrainRecipe) -> None:
    stage = recipe.engine.zero_stage
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.zero_stage={stage}: expected 0, 1, 2 or 3")
    if stage == 0 and recipe.engine.precision == "bf16":
        raise ConfigError("engine.precision=bf16 at engine.zero_stage=0 trains differently: use stage 1, or autocast")


def _check_numbers(recipe: TrainRecipe) -> None:
    if recipe.diffusion.num_timesteps < MIN_TIMESTEPS:
        raise ConfigError(f"diffusion.num_timesteps={recipe.diffusion.num_timesteps}: expected {MIN_TIMESTEPS} or more")
    lowest, highest = recipe.diffusion.log_snr_min, recipe.diffusion.log_snr_max
    if lowest >= highest:
        raise ConfigError(f"diffusion.log_snr_min={lowest}: expected less than diffusion.log_snr_max={highest}")
    for decay in recipe.ema.decays:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema.decays holds {decay}: expected 0 or more and below 1")
    if recipe.optim.lr <= 0 or not all(0 <= beta < 1 for beta in recipe.optim.betas):
        raise ConfigError(
            f"optim.lr={recipe.optim.lr}, optim.betas={list(recipe.optim.betas)}: expected lr > 0, betas in [0, 1)"
        )
    if recipe.model.in_channels != 3:
        raise ConfigError(f"model.in_channels={recipe.model.in_channels}: images are RGB, expected 3")


def _check_preview(recipe: DiffusionRecipe) -> None:
    at_least(recipe, "preview.num_images", 0)
    at_least(recipe, "preview.every_commits", 1)
    _check_sampler("preview.sampler", recipe.preview.sampler)
    if recipe.preview.num_images and recipe.preview.cfg_scale != 1 and not recipe.objective.p_uncond:
        raise ConfigError(
            f"preview.cfg_scale={recipe.preview.cfg_scale} needs a model with label dropout: objective.p_uncond is 0"
        )


def _check_sampler(key: str, sampler: SamplerOptions) -> None:
    if not 0 <= sampler.eta <= 1:
        raise ConfigError(f"{key}.eta={sampler.eta}: expected 0 to 1")
    if sampler.eta and sampler.name != "ddim":
        raise ConfigError(f"{key}.eta={sampler.eta} is DDIM's; {key}.name is {sampler.name}")


def _check_exports(recipe: TrainRecipe) -> None:
    known = [f"ema_{i}" for i in range(len(recipe.ema.decays))] + ["weights"]
    for name in recipe.checkpoint.export:
        if name not in known:
            raise ConfigError(f"checkpoint.export names {name}; this recipe has {', '.join(known)}")


def _check_objective(recipe: DiffusionRecipe) -> None:
    if not 0 <= recipe.objective.p_uncond < 1:
        raise ConfigError(f"objective.p_uncond={recipe.objective.p_uncond}: expected a probability below 1")
    loss, variance = recipe.objective.loss, recipe.diffusion.variance
    if loss in ("hybrid", "rescaled") and variance not in LEARNED_VARIANCES:
        raise ConfigError(
            f"objective.loss={loss} learns the variance, diffusion.variance={variance} fixes it: "
            "use objective.loss=simple or kl"
        )
    if loss == "kl" and recipe.objective.weighting != "uniform":
        raise ConfigError(
            f"objective.weighting={recipe.objective.weighting} weights the squared error, which objective.loss=kl has "
            "not: leave it out"
        )
    if recipe.objective.min_snr_gamma <= 0 or recipe.objective.sigma_data <= 0:
        raise ConfigError("objective.min_snr_gamma and objective.sigma_data: expected more than 0")
    if recipe.diffusion.schedule == "log_snr":
        _check_continuous(recipe)


def _check_continuous(recipe: DiffusionRecipe) -> None:
    """What continuous time has not: timesteps, and with them their posterior."""
    for key in ("objective.loss=simple", "diffusion.variance=fixed_small|fixed_large", "diffusion.prediction=eps|x0|v"):
        name, _, allowed = key.partition("=")
        if get(recipe, name) not in allowed.split("|"):
            raise ConfigError(
                f"{name}={get(recipe, name)} needs timesteps, diffusion.schedule=log_snr has none: use "
                f"{allowed.replace('|', ' or ')}"
            )
    if recipe.objective.timesteps == "loss_aware":
        raise ConfigError("objective.timesteps=loss_aware needs timesteps, diffusion.schedule=log_snr has none")


def _check_super_resolution(recipe: SuperResolutionRecipe) -> None:
    small, large = recipe.model.low_res_size, recipe.data.image_size
    if not 1 <= small < large:
        raise ConfigError(f"model.low_res_size={small}: expected less than data.image_size={large}")
    if recipe.preview.num_images:
        raise ConfigError("preview.num_images: a super-resolution model has no images of its own to start from, use 0")


def check_evaluate(recipe: EvaluateRecipe) -> None:
    """Sizes of an evaluation that cannot be."""
    for key in ("image_size", "num_reference", "batch_size", "threads"):
        at_least(recipe, key, 1)


def check_nll(recipe: NllRecipe) -> None:
    """Settings of a likelihood evaluation that cannot be."""
    require(recipe, "model", "out", "data.shards")
    for key in ("num_samples", "batch_size", "threads"):
        at_least(recipe, key, 1)


def check_sample(recipe: SampleRecipe) -> None:
    """Settings of a sampling job that contradict each other."""
    require(recipe, "model", "out")
    for key in ("num_samples", "batch_size", "shard_size", "threads"):
        at_least(recipe, key, 1)
    if recipe.shard_size % recipe.batch_size:
        raise ConfigError(f"shard_size={recipe.shard_size} is not a multiple of batch_size={recipe.batch_size}")
    if recipe.guidance.mode in ("classifier", "both"):
        require(recipe, "guidance.classifier")
    _check_sampler("sampler", recipe.sampler)
