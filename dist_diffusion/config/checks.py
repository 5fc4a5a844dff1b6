"""What the types cannot say of a recipe: found before anything is started. Of sampling, see sampling_checks."""

import math

from dist_diffusion.config.engine_checks import WATCHDOG, check_engine
from dist_diffusion.config.ranges import above_zero, get, in_range, require
from dist_diffusion.config.sampling_checks import check_sampler
from dist_diffusion.config.schema import (
    DiffusionRecipe,
    EvaluateRecipe,
    NllRecipe,
    SuperResolutionRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import LEARNED_VARIANCES, DiffusionOptions
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import NetworkOptions, UNetOptions

MIN_TIMESTEPS = {"linear": 21, "cosine": 2, "log_snr": 1}
"""The linear schedule's last beta is 20 / T: below 1 only from 21 on. A step's variance at t = 0 is the next one's."""
MAX_LOG_SNR = 60.0
"""Where alpha or sigma, in float32 arithmetic, has long stopped to matter."""


RANGES: tuple[tuple[str, float, float], ...] = (
    *((f"train.{name}", 1, math.inf) for name in ("steps", "global_batch", "log_every")),
    ("threads", 1, math.inf),
    ("checkpoint.every", 1, math.inf),
    ("checkpoint.keep", 0, math.inf),
    *((f"validation.{name}", 1, math.inf) for name in ("num_samples", "every_commits", "batch_size")),
    ("engine.max_nonfinite_steps", 1, math.inf),
    # Rank 0 may watch another host's lease for a minute while the other ranks wait in a collective.
    ("engine.timeout_s", 120, math.inf),
    ("engine.loss_scale_window", 1, math.inf),
    ("engine.drift_check_every", 0, math.inf),
    ("checkpoint.keep_every", 1, math.inf),
    ("ema.snapshot_every_commits", 1, math.inf),
    *((limit, 1, math.inf) for limit in WATCHDOG),
    ("data.image_size", 1, math.inf),
    ("data.shuffle_block", 1, math.inf),
    ("data.workers", 0, math.inf),
    ("data.max_replaced_share", 0, 1),
    ("data.max_replaced_in_a_row", 0, math.inf),
    ("diffusion.variance_mix", 0, 1),
    ("model.dropout", 0, 1),
    ("model.num_res_blocks", 0, math.inf),
    ("model.channels", 2, math.inf),
    ("model.num_heads", 1, math.inf),
    ("optim.weight_decay", 0, math.inf),
    ("optim.clip_norm", 0, math.inf),
    ("optim.warmup_images", 0, math.inf),
    ("optim.decay_from_images", 0, math.inf),
)
"""Smallest and largest value."""


def check_train(recipe: TrainRecipe, world_size: int) -> None:
    """Settings that contradict each other or the number of ranks."""
    require(recipe, "run_dir", "data.shards")
    batch, micro = recipe.train.global_batch, recipe.train.micro_batch
    for key, low, high in RANGES:
        in_range(recipe, key, low, high)
    if batch % world_size:
        raise ConfigError(f"train.global_batch={batch} is not divisible by the {world_size} ranks")
    if micro is not None and (micro < 1 or (batch // world_size) % micro):
        raise ConfigError(f"train.micro_batch={micro} does not divide a rank's share of {batch // world_size} samples")
    streams = recipe.data.canonical_streams
    if streams is not None and (streams < 1 or batch % streams):
        raise ConfigError(f"data.canonical_streams={streams} does not divide train.global_batch={batch}")
    _check_latents(recipe)
    check_engine(recipe)
    _check_numbers(recipe)
    _check_process(recipe.diffusion)
    _check_model(recipe.model)
    if isinstance(recipe, SuperResolutionRecipe):
        _check_super_resolution(recipe)
    if isinstance(recipe, DiffusionRecipe):
        _check_objective(recipe)
        _check_preview(recipe)


def _check_latents(recipe: TrainRecipe) -> None:
    """What only images can have done to them."""
    if not recipe.data.latents:
        if recipe.data.latent_scale != 1:
            raise ConfigError(f"data.latent_scale={recipe.data.latent_scale} is of data.latents=true: leave it out")
        return
    above_zero(recipe, "data.latent_scale")
    for key in ("data.random_flip", "data.random_crop"):
        if get(recipe, key):
            raise ConfigError(f"{key}: data.latents=true reads latents as they are: use false")
    if recipe.validation.shards is not None:
        raise ConfigError("validation.shards: not with data.latents=true: leave it out")
    if isinstance(recipe, DiffusionRecipe) and recipe.preview.num_images:
        raise ConfigError("preview.num_images: latents are no images to show, use 0")


def _check_numbers(recipe: TrainRecipe) -> None:
    for key in ("optim.lr", "optim.eps"):
        above_zero(recipe, key)
    for key in ("ema.decays", "optim.betas"):
        for number in get(recipe, key):
            if not 0 <= number < 1:
                raise ConfigError(f"{key} holds {number}: expected 0 or more and below 1")
    if recipe.model.in_channels != 3 and not recipe.data.latents:
        raise ConfigError(f"model.in_channels={recipe.model.in_channels}: images are RGB, expected 3")


def _check_process(options: DiffusionOptions) -> None:
    fewest = MIN_TIMESTEPS[options.schedule]
    if options.num_timesteps < fewest:
        raise ConfigError(
            f"diffusion.num_timesteps={options.num_timesteps}: expected {fewest} or more with the schedule "
            f"{options.schedule}"
        )
    lowest, highest = options.log_snr_min, options.log_snr_max
    if not -MAX_LOG_SNR <= lowest < highest <= MAX_LOG_SNR:
        raise ConfigError(
            f"diffusion.log_snr_min={lowest}, diffusion.log_snr_max={highest}: expected the first below the second, "
            f"both from {-MAX_LOG_SNR:g} to {MAX_LOG_SNR:g}"
        )


def _check_model(model: NetworkOptions) -> None:
    for key in ("channel_mult", "attention_resolutions"):
        for number in getattr(model, key):
            if not 0 < number < math.inf:
                raise ConfigError(f"model.{key} holds {number}: expected numbers above 0")
    if not model.channel_mult:
        raise ConfigError("model.channel_mult is empty: expected a multiplier for each resolution")
    upsample = model.num_heads_upsample if isinstance(model, UNetOptions) else None
    for key, heads in (("num_heads_upsample", upsample), ("num_head_channels", model.num_head_channels)):
        if heads is not None and heads < 1:
            raise ConfigError(f"model.{key}={heads}: expected 1 or more, or null for none given")


def _check_preview(recipe: DiffusionRecipe) -> None:
    in_range(recipe, "preview.num_images", 0)
    in_range(recipe, "preview.every_commits", 1)
    check_sampler("preview.sampler", recipe.preview.sampler)
    if recipe.preview.num_images and recipe.preview.cfg_scale != 1 and not recipe.objective.p_uncond:
        raise ConfigError(
            f"preview.cfg_scale={recipe.preview.cfg_scale} needs a model with label dropout: objective.p_uncond is 0"
        )


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
    if loss == "simple" and variance in LEARNED_VARIANCES:
        raise ConfigError(
            f"objective.loss=simple trains no variance, diffusion.variance={variance} samples with it: use "
            "objective.loss=hybrid, or diffusion.variance=fixed_small, fixed_large or fixed_mix"
        )
    for key in ("objective.min_snr_gamma", "objective.log_sigma_std", "diffusion.sigma_data"):
        above_zero(recipe, key)
    in_range(recipe, "objective.log_sigma_mean", -MAX_LOG_SNR / 2, MAX_LOG_SNR / 2)
    if recipe.diffusion.schedule == "log_snr":
        _check_continuous(recipe)
    elif recipe.objective.timesteps == "log_normal":
        raise ConfigError(
            "objective.timesteps=log_normal needs noise levels between timesteps, diffusion.schedule="
            f"{recipe.diffusion.schedule} has none: use diffusion.schedule=log_snr"
        )


def _check_continuous(recipe: DiffusionRecipe) -> None:
    """What continuous time has not: timesteps, and with them their posterior."""
    allowed = {
        "objective.loss": ("simple",),
        "diffusion.variance": ("fixed_small", "fixed_large", "fixed_mix"),
        "diffusion.prediction": ("eps", "x0", "v", "edm"),
    }
    for key, values in allowed.items():
        if get(recipe, key) not in values:
            raise ConfigError(
                f"{key}={get(recipe, key)} needs timesteps, diffusion.schedule=log_snr has none: use "
                f"{' or '.join(values)}"
            )
    if recipe.objective.timesteps == "loss_aware":
        raise ConfigError("objective.timesteps=loss_aware needs timesteps, diffusion.schedule=log_snr has none")


def _check_super_resolution(recipe: SuperResolutionRecipe) -> None:
    small, large = recipe.model.low_res_size, recipe.data.image_size
    if not 1 <= small < large:
        raise ConfigError(f"model.low_res_size={small}: expected 1 to {large - 1}, less than data.image_size={large}")
    if recipe.preview.num_images:
        raise ConfigError("preview.num_images: a super-resolution model has no images of its own to start from, use 0")


def check_evaluate(recipe: EvaluateRecipe) -> None:
    """Sizes of an evaluation that cannot be."""
    for key in ("image_size", "num_reference", "batch_size", "threads"):
        in_range(recipe, key, 1)


def check_nll(recipe: NllRecipe) -> None:
    """Settings of a likelihood evaluation that cannot be."""
    require(recipe, "model", "out", "data.shards")
    for key in ("num_samples", "batch_size", "threads"):
        in_range(recipe, key, 1)
