"""What the types cannot say of a recipe: found before anything is started."""

import functools
import itertools
import math
from typing import Any

from dist_diffusion.config.points import guidance_points
from dist_diffusion.config.schema import (
    DiffusionRecipe,
    EvaluateRecipe,
    NllRecipe,
    SampleRecipe,
    SuperResolutionRecipe,
    SweepRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import LEARNED_VARIANCES, DiffusionOptions, GuidanceOptions, SamplerOptions
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import NetworkOptions, UNetOptions

MIN_TIMESTEPS = {"linear": 21, "cosine": 2, "log_snr": 1}
"""The linear schedule's last beta is 20 / T: below 1 only from 21 on. A step's variance at t = 0 is the next one's."""
MAX_LOG_SNR = 60.0
"""Where alpha or sigma, in float32 arithmetic, has long stopped to matter."""


def require(recipe: object, *keys: str) -> None:
    """ConfigError for the first of `keys` that is not given."""
    for key in keys:
        if get(recipe, key) is None:
            raise ConfigError(f"{key} is not given: add {key}=... to the command line or the recipe")


def get(recipe: object, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), recipe)


RANGES: tuple[tuple[str, float, float], ...] = (
    *((f"train.{name}", 1, math.inf) for name in ("steps", "global_batch", "log_every")),
    ("threads", 1, math.inf),
    ("checkpoint.every", 1, math.inf),
    ("checkpoint.keep", 0, math.inf),
    *((f"validation.{name}", 1, math.inf) for name in ("num_samples", "every_commits", "batch_size")),
    ("engine.max_nonfinite_steps", 1, math.inf),
    # Rank 0 may watch another host's lease for a minute while the other ranks wait in a collective.
    ("engine.timeout_s", 120, math.inf),
    ("data.image_size", 1, math.inf),
    ("data.shuffle_block", 1, math.inf),
    ("diffusion.variance_mix", 0, 1),
    ("model.dropout", 0, 1),
    ("model.num_res_blocks", 0, math.inf),
    ("model.channels", 2, math.inf),
    ("model.num_heads", 1, math.inf),
    ("optim.weight_decay", 0, math.inf),
    ("optim.clip_norm", 0, math.inf),
    ("optim.warmup_images", 0, math.inf),
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
    _check_engine(recipe)
    _check_exports(recipe)
    _check_numbers(recipe)
    _check_process(recipe.diffusion)
    _check_model(recipe.model)
    if isinstance(recipe, SuperResolutionRecipe):
        _check_super_resolution(recipe)
    if isinstance(recipe, DiffusionRecipe):
        _check_objective(recipe)
        _check_preview(recipe)


def in_range(recipe: object, key: str, low: float, high: float = math.inf, prefix: str = "") -> None:
    """ConfigError where a number that is given lies outside; nan lies in no range. `prefix` is of the key."""
    value = get(recipe, key)
    if value is not None and not low <= value <= high:
        expected = f"{low} to {high}" if math.isfinite(high) else f"{low} or more"
        raise ConfigError(f"{prefix and prefix + '.'}{key}={value}: expected {expected}")


def above_zero(recipe: object, key: str, prefix: str = "") -> None:
    """ConfigError where a number is not positive and finite."""
    if not 0 < get(recipe, key) < math.inf:
        raise ConfigError(f"{prefix and prefix + '.'}{key}={get(recipe, key)}: expected a number above 0")


def _check_engine(recipe: TrainRecipe) -> None:
    stage = recipe.engine.zero_stage
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.zero_stage={stage}: expected 0, 1, 2 or 3")
    if stage == 0 and recipe.engine.precision == "bf16":
        raise ConfigError("engine.precision=bf16 at engine.zero_stage=0 trains differently: use stage 1, or autocast")


def _check_numbers(recipe: TrainRecipe) -> None:
    for key in ("optim.lr", "optim.eps"):
        above_zero(recipe, key)
    for key in ("ema.decays", "optim.betas"):
        for number in get(recipe, key):
            if not 0 <= number < 1:
                raise ConfigError(f"{key} holds {number}: expected 0 or more and below 1")
    if recipe.model.in_channels != 3:
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
    if not 0 < sampler.sigma_min < sampler.sigma_max:
        raise ConfigError(
            f"{key}.sigma_min={sampler.sigma_min}, {key}.sigma_max={sampler.sigma_max}: expected the first above 0 and "
            "below the second"
        )
    for name in ("rho", "churn_noise"):
        above_zero(sampler, name, key)
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
    _check_sampler("sampler", recipe.sampler)
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
