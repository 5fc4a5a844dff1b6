"""What the types cannot say of a recipe: found before anything is started."""

from dist_diffusion.config.schema import DiffusionRecipe, SampleRecipe, TrainRecipe
from dist_diffusion.errors import ConfigError


def require(recipe: object, *keys: str) -> None:
    """ConfigError for the first of `keys` that is not given."""
    for key in keys:
        value = recipe
        for part in key.split("."):
            value = getattr(value, part)
        if value is None:
            raise ConfigError(f"{key} is not given: add {key}=... to the command line or the recipe")


def check_train(recipe: TrainRecipe, world_size: int) -> None:
    """Settings that contradict each other or the number of ranks."""
    require(recipe, "run_dir", "data.shards")
    batch, micro = recipe.train.global_batch, recipe.train.micro_batch
    for key, value in [("train.global_batch", batch), ("train.steps", recipe.train.steps)]:
        _positive(key, value)
    _positive("train.log_every", recipe.train.log_every)
    _positive("checkpoint.every", recipe.checkpoint.every)
    if batch % world_size:
        raise ConfigError(f"train.global_batch={batch} is not divisible by the {world_size} ranks")
    if micro is not None and (micro < 1 or (batch // world_size) % micro):
        raise ConfigError(f"train.micro_batch={micro} does not divide a rank's share of {batch // world_size} samples")
    streams = recipe.data.canonical_streams
    if streams is not None and (streams < 1 or batch % streams):
        raise ConfigError(f"data.canonical_streams={streams} does not divide train.global_batch={batch}")
    _check_engine(recipe)
    _check_exports(recipe)
    if isinstance(recipe, DiffusionRecipe):
        _check_objective(recipe)


def _positive(key: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{key}={value}: expected 1 or more")


def _check_engine(recipe: TrainRecipe) -> None:
    stage = recipe.engine.zero_stage
    if stage not in (0, 1, 2, 3):
        raise ConfigError(f"engine.zero_stage={stage}: expected 0, 1, 2 or 3")
    if stage == 0 and recipe.engine.precision == "bf16":
        raise ConfigError("engine.precision=bf16 at engine.zero_stage=0 trains differently: use stage 1, or autocast")


def _check_exports(recipe: TrainRecipe) -> None:
    known = [f"ema_{i}" for i in range(len(recipe.ema.decays))] + ["weights"]
    for name in recipe.checkpoint.export:
        if name not in known:
            raise ConfigError(f"checkpoint.export names {name}; this recipe has {', '.join(known)}")


def _check_objective(recipe: DiffusionRecipe) -> None:
    if not 0 <= recipe.objective.p_uncond < 1:
        raise ConfigError(f"objective.p_uncond={recipe.objective.p_uncond}: expected a probability below 1")
    if recipe.objective.loss == "hybrid" and recipe.diffusion.variance != "learned_range":
        raise ConfigError(
            f"objective.loss=hybrid learns the variance, diffusion.variance={recipe.diffusion.variance} fixes it: "
            "use objective.loss=simple"
        )


def check_sample(recipe: SampleRecipe) -> None:
    """Settings of a sampling job that contradict each other."""
    require(recipe, "model", "out")
    for key in ("num_samples", "batch_size", "shard_size"):
        _positive(key, getattr(recipe, key))
    if recipe.shard_size % recipe.batch_size:
        raise ConfigError(f"shard_size={recipe.shard_size} is not a multiple of batch_size={recipe.batch_size}")
    if recipe.guidance.mode in ("classifier", "both"):
        require(recipe, "guidance.classifier")
    if recipe.sampler.eta and recipe.sampler.name != "ddim":
        raise ConfigError(f"sampler.eta={recipe.sampler.eta} is DDIM's; sampler.name is {recipe.sampler.name}")
