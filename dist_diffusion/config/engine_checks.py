"""What the types cannot say of a recipe's engine, optimizer, averages, checkpoints and limits."""

import math

from dist_diffusion.config.averages import MAX_STD, WEIGHTS, average_names
from dist_diffusion.config.ranges import above_zero, get
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.errors import ConfigError

MIRRORS = ("gs://", "az://", "s3://")
WATCHDOG = tuple(f"watchdog.{phase}_s" for phase in ("start", "first_step", "step", "save", "preview"))


def check_engine(recipe: TrainRecipe) -> None:
    """ConfigError for settings that contradict each other."""
    _check_sharding(recipe)
    _check_limits(recipe)
    _check_optim(recipe)
    _check_averages(recipe)
    _check_checkpoint(recipe)


def _check_sharding(recipe: TrainRecipe) -> None:
    stage = recipe.engine.zero_stage
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.zero_stage={stage}: expected 0, 1, 2 or 3")
    options = recipe.engine
    if stage == 0 and options.precision in ("bf16", "fp16"):
        raise ConfigError(
            f"engine.precision={options.precision} at engine.zero_stage=0 trains differently: use stage 1, or autocast"
        )
    if stage == 0 and options.offload_optimizer:
        raise ConfigError("engine.offload_optimizer: at engine.zero_stage=0 nothing is sharded: use stage 1, 2 or 3")
    if stage == 3 and options.compile:
        raise ConfigError("engine.compile: its gathers break the graphs of engine.zero_stage=3: use stage 0, 1 or 2")
    if options.peak_tflops is not None:
        above_zero(recipe, "engine.peak_tflops")
    for key in ("engine.loss_scale", "engine.loss_scale_floor"):
        scale = get(recipe, key)
        if scale < 1 or scale & (scale - 1):
            raise ConfigError(f"{key}={scale}: expected a power of 2")
    if options.loss_scale_floor > options.loss_scale:
        raise ConfigError(
            f"engine.loss_scale_floor={options.loss_scale_floor} is above engine.loss_scale={options.loss_scale}"
        )


def _check_limits(recipe: TrainRecipe) -> None:
    """A hang is named by the watchdog, before the collectives of the other ranks give up."""
    for key in WATCHDOG:
        if not get(recipe, key) < recipe.engine.timeout_s < math.inf:
            raise ConfigError(
                f"{key}={get(recipe, key)}: expected less than engine.timeout_s={recipe.engine.timeout_s}"
            )


def _check_optim(recipe: TrainRecipe) -> None:
    """Where the decay begins."""
    options, total = recipe.optim, recipe.train.steps * recipe.train.global_batch
    if options.decay == "none" and options.decay_from_images:
        raise ConfigError("optim.decay_from_images is of optim.decay, which is none: leave it out")
    if options.decay == "inverse_sqrt" and not options.decay_from_images:
        raise ConfigError("optim.decay=inverse_sqrt is lr / sqrt(images / decay_from_images): give that")
    if options.decay in ("linear", "cosine") and options.decay_from_images >= total:
        raise ConfigError(
            f"optim.decay_from_images={options.decay_from_images} is not before the run's end, at {total} images"
        )


def _check_averages(recipe: TrainRecipe) -> None:
    for std in recipe.ema.stds:
        if not 0 < std < MAX_STD:
            raise ConfigError(f"ema.stds holds {std}: expected more than 0 and less than {MAX_STD:.4g}")
    known = [*average_names(recipe.ema), WEIGHTS]
    if len(set(known)) < len(known):
        raise ConfigError(f"ema.stds={list(recipe.ema.stds)}: two of them have one name, leave one out")
    for name in recipe.checkpoint.export:
        if name not in known:
            raise ConfigError(f"checkpoint.export names {name}; this recipe has {', '.join(known)}")


def _check_checkpoint(recipe: TrainRecipe) -> None:
    options = recipe.checkpoint
    if options.best is not None and recipe.validation.shards is None:
        raise ConfigError(f"checkpoint.best={options.best} is a column of the validation: give validation.shards")
    if options.mirror is not None and not options.mirror.startswith(MIRRORS):
        raise ConfigError(f"checkpoint.mirror={options.mirror}: expected one of {', '.join(MIRRORS)}")
