"""DeepSpeed's configuration, derived from the recipe. Torch- and DeepSpeed-free: a wrong key is found early."""

import math
from typing import Any

from dist_diffusion.config.schema import EngineOptions, TrainRecipe
from dist_diffusion.errors import ConfigError

DERIVED = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "torch_autocast": "engine.precision",
    "zero_force_ds_cpu_optimizer": "engine.offload_optimizer",
}
"""Top-level keys that the recipe decides, and the recipe's key for each."""

REDUCE_BUCKET = 50_000_000
"""Elements that are reduced at once. DeepSpeed would allocate ten times as many for any network: 2 GB in fp32."""
ALLOWED_EXTRA = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "communication_data_type",
        "disable_allgather",
        "dump_state",
        "flops_profiler",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "sparse_gradients",
        "steps_per_print",
        "timers",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_optimization",
    }
)
"""DeepSpeed accepts unknown top-level keys in silence, so what may be added is listed here."""


def micro_batch(recipe: TrainRecipe, world_size: int) -> int:
    """Samples of one forward pass on one rank."""
    return recipe.train.micro_batch or recipe.train.global_batch // world_size


def ds_config(recipe: TrainRecipe, world_size: int, num_parameters: int) -> dict[str, Any]:
    """DeepSpeed's dictionary, `deepspeed.extra` merged last."""
    precision, micro = recipe.engine.precision, micro_batch(recipe, world_size)
    derived: dict[str, Any] = {
        "train_batch_size": recipe.train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.train.global_batch // (world_size * micro),
        "gradient_clipping": recipe.optim.clip_norm,
        "zero_optimization": zero_optimization(recipe.engine, num_parameters),
        "steps_per_print": None,
    }
    if recipe.engine.offload_optimizer:
        # Else it insists on an Adam of its own, which has to be compiled where it runs.
        derived["zero_force_ds_cpu_optimizer"] = False
    if precision == "fp16":
        derived["fp16"] = loss_scaling(recipe.engine)
    if precision == "bf16":
        derived["bf16"] = {"enabled": True}
    if precision == "autocast":
        # Without the empty list, gradients of these modules would be communicated in bf16.
        derived["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return merge(derived, checked_extra(recipe.deepspeed.extra))


def zero_optimization(options: EngineOptions, num_parameters: int) -> dict[str, Any]:
    """Stage, offload, and a bucket that is no larger than the network."""
    zero: dict[str, Any] = {"stage": options.zero_stage, "reduce_bucket_size": min(REDUCE_BUCKET, num_parameters)}
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return zero


def loss_scaling(options: EngineOptions) -> dict[str, Any]:
    """Dynamic: halved at every overflow, down to the floor."""
    return {
        "enabled": True,
        "initial_scale_power": round(math.log2(options.loss_scale)),
        "loss_scale_window": options.loss_scale_window,
        "hysteresis": 1,
        "min_loss_scale": options.loss_scale_floor,
    }


def checked_extra(extra: dict[str, Any]) -> dict[str, Any]:
    """`deepspeed.extra` itself; ConfigError for a key that the recipe decides or that is not known."""
    for key, value in extra.items():
        if key in DERIVED:
            raise ConfigError(f"deepspeed.extra.{key} is derived from the recipe: set {DERIVED[key]}")
        if key not in ALLOWED_EXTRA:
            raise ConfigError(f"deepspeed.extra.{key} is not a known key; known are {', '.join(sorted(ALLOWED_EXTRA))}")
        if key == "zero_optimization":
            check_zero(value)
    return extra


def check_zero(value: Any) -> None:
    """`deepspeed.extra.zero_optimization`: a mapping without what the recipe decides or the checkpoints cannot hold."""
    if not isinstance(value, dict):
        raise ConfigError(f"deepspeed.extra.zero_optimization={value}: expected keys and values")
    if "stage" in value:
        raise ConfigError("deepspeed.extra.zero_optimization.stage is derived from the recipe: set engine.zero_stage")
    for key in ("offload_optimizer", "cpu_offload"):
        if key in value:
            raise ConfigError(f"deepspeed.extra.zero_optimization.{key}: set engine.offload_optimizer")
    if value.get("round_robin_gradients"):
        raise ConfigError("deepspeed.extra.zero_optimization.round_robin_gradients: checkpoints cannot hold its layout")


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra`'s values, nested dictionaries merged."""
    merged = dict(base)
    for key, value in extra.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if nested else value
    return merged
