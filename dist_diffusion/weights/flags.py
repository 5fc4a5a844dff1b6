"""What guided-diffusion's scripts can be told of a model, and how."""

from dist_diffusion.config.ranges import get
from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe, SuperResolutionRecipe, TrainRecipe
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions

THEIR_CLASSES = 1000
"""Written into guided-diffusion's script_util.py."""
THEIR_CHANNEL_MULT: dict[int | None, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
"""What guided-diffusion takes for an image size where its --channel_mult, which knows integers alone, is not given."""
THEIR_UPSAMPLER_MULT: dict[int | None, tuple[float, ...]] = {
    512: (1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    64: (1, 2, 3, 4),
}
THEIR_HEAD_CHANNELS = 64
"""Of a classifier."""
Flags = dict[str, int | float | str | None]


def unsupported(recipe: TrainRecipe) -> list[str]:
    """What of a model guided-diffusion's scripts cannot be told, as key=value."""
    model, process = recipe.model, recipe.diffusion
    runs = {
        "diffusion.schedule": process.schedule != "log_snr",
        "model.in_channels": model.in_channels == 3,
        "model.channel_mult": _has_their_mult(recipe),
    }
    if isinstance(model, UNetOptions):
        runs["diffusion.prediction"] = process.prediction in ("eps", "x0")
        runs["diffusion.variance"] = process.variance in ("learned_range", "fixed_large")
        runs["model.null_label"] = not model.null_label
    else:
        runs["model.num_head_channels"] = model.num_head_channels == THEIR_HEAD_CHANNELS
    if isinstance(recipe, ClassifierRecipe | SuperResolutionRecipe):
        runs["model.new_attention_order"] = not model.new_attention_order
    return [f"{key}={get(recipe, key)}" for key, can in runs.items() if not can]


def flags(recipe: TrainRecipe) -> str:
    """A model and its process as guided-diffusion's scripts are told them; the recipe is one that they can run."""
    if isinstance(recipe, ClassifierRecipe):
        values = _classifier_flags(recipe.model)
    else:
        values = _unet_flags(recipe.model) | _objective_flags(recipe)
    process = recipe.diffusion
    values |= {
        "diffusion_steps": process.num_timesteps,
        "noise_schedule": process.schedule,
        "rescale_timesteps": process.rescale_timesteps,
    }
    return " ".join(f"--{name} {value}" for name, value in values.items())


def _unet_flags(model: UNetOptions) -> Flags:
    values: Flags = {
        "num_channels": model.channels,
        "num_res_blocks": model.num_res_blocks,
        "attention_resolutions": _their_resolutions(model),
        "num_heads": model.num_heads,
        "num_heads_upsample": model.num_heads_upsample or -1,
        "num_head_channels": model.num_head_channels or -1,
        "use_scale_shift_norm": model.scale_shift_norm,
        "resblock_updown": model.resblock_updown,
        "dropout": model.dropout,
        "class_cond": bool(model.num_classes),
    }
    if isinstance(model, SuperResolutionOptions):
        return {"large_size": model.image_size, "small_size": model.low_res_size, **values}
    if THEIR_CHANNEL_MULT.get(model.image_size) != tuple(model.channel_mult):
        values["channel_mult"] = ",".join(str(int(m)) for m in model.channel_mult)
    return {"image_size": model.image_size, **values, "use_new_attention_order": model.new_attention_order}


def _objective_flags(recipe: DiffusionRecipe) -> Flags:
    return {
        "learn_sigma": recipe.diffusion.variance == "learned_range",
        "predict_xstart": recipe.diffusion.prediction == "x0",
        "use_kl": recipe.objective.loss == "kl",
        "rescale_learned_sigmas": recipe.objective.loss == "rescaled",
    }


def _classifier_flags(model: ClassifierOptions) -> Flags:
    return {
        "image_size": model.image_size,
        "classifier_width": model.channels,
        "classifier_depth": model.num_res_blocks,
        "classifier_attention_resolutions": _their_resolutions(model),
        "classifier_use_scale_shift_norm": model.scale_shift_norm,
        "classifier_resblock_updown": model.resblock_updown,
        "classifier_pool": model.pool,
    }


def _their_resolutions(model: UNetOptions | ClassifierOptions) -> str:
    assert model.image_size
    # None at all cannot be said, but one above the image's own size is at no depth.
    return ",".join(map(str, model.attention_resolutions or [2 * model.image_size]))


def _has_their_mult(recipe: TrainRecipe) -> bool:
    size, mult = recipe.model.image_size, tuple(recipe.model.channel_mult)
    if isinstance(recipe, SuperResolutionRecipe):
        return THEIR_UPSAMPLER_MULT.get(size) == mult
    if isinstance(recipe, ClassifierRecipe):
        return THEIR_CHANNEL_MULT.get(size) == mult
    return THEIR_CHANNEL_MULT.get(size) == mult or all(float(m).is_integer() for m in mult)
