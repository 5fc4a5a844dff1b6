"""The networks of a sampling job, and which of them may work together."""

from collections.abc import Sequence
from dataclasses import dataclass

from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe
from dist_diffusion.diffusion.guidance import in_interval
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions
from dist_diffusion.diffusion.schedules import time_scale
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling.low_res import low_res_size
from dist_diffusion.weights.load import LoadedModel


@dataclass(frozen=True)
class Models:
    """The networks of a job, as its guidance mode needs them."""

    model: LoadedModel
    classifier: LoadedModel | None = None
    unconditional: LoadedModel | None = None
    weaker: LoadedModel | None = None
    """Of autoguidance."""


def diffusion_recipe(model: LoadedModel, key: str = "model") -> tuple[DiffusionRecipe, UNetOptions]:
    """The recipe of a diffusion or super-resolution model; ConfigError where it is a classifier's."""
    if not isinstance(model.recipe, DiffusionRecipe):
        raise ConfigError(f"{key}={model.path} is a {model.recipe.task}; sampling needs a diffusion model")
    if model.recipe.data.latents:
        raise ConfigError(
            f"{key}={model.path} was trained on latents: what it samples becomes images only by the decoder of those, "
            "which is not part of this system"
        )
    return model.recipe, model.recipe.model


def check_guidance(models: Models, guidance: GuidanceOptions) -> None:
    """ConfigError where the mode cannot work with these models."""
    recipe, options = diffusion_recipe(models.model)
    if guidance.mode in ("cfg", "both"):
        check_unconditional(models, options)
    if models.classifier is not None:
        check_classifier(models.classifier, recipe)
    if models.weaker is not None:
        check_weaker(models.weaker, models.model)


def check_unconditional(models: Models, options: UNetOptions) -> None:
    """Classifier-free guidance needs labels and an unconditional estimate."""
    if not options.num_classes:
        raise ConfigError(
            f"guidance.mode: {models.model.path} is unconditional, classifier-free guidance needs labels: use mode "
            "none or classifier"
        )
    if models.unconditional is None and not options.null_label:
        raise ConfigError(
            f"guidance.mode: {models.model.path} was trained without label dropout (objective.p_uncond=0): give "
            "guidance.uncond_model, or use mode none or classifier"
        )
    if models.unconditional is not None:
        ours, _ = diffusion_recipe(models.model)
        theirs, other = diffusion_recipe(models.unconditional, "guidance.uncond_model")
        if other.num_classes or sizes(other) != sizes(options):
            raise ConfigError(
                f"guidance.uncond_model={models.unconditional.path}: expected an unconditional model of "
                f"{sizes(options)}; it has {other.num_classes} classes and {sizes(other)}"
            )
        check_process("guidance.uncond_model", models.unconditional.path, theirs.diffusion, ours.diffusion)


def check_weaker(weaker: LoadedModel, model: LoadedModel) -> None:
    """Autoguidance leads away from a model of the same images and labels."""
    (ours, options), (theirs, other) = diffusion_recipe(model), diffusion_recipe(weaker, "guidance.auto_model")
    if other.num_classes != options.num_classes or sizes(other) != sizes(options):
        raise ConfigError(
            f"guidance.auto_model={weaker.path}: expected a weaker model of {sizes(options)} and "
            f"{options.num_classes} classes; it has {other.num_classes} classes and {sizes(other)}"
        )
    check_process("guidance.auto_model", weaker.path, theirs.diffusion, ours.diffusion)


def check_interval(guidance: GuidanceOptions, levels: Sequence[Level]) -> None:
    """ConfigError where guidance would act nowhere on a sampler's path."""
    if guidance.interval is None or any(in_interval(level, guidance.interval) for level in levels[:-1]):
        return
    low, high = levels[-2].edm_sigma, levels[0].edm_sigma
    raise ConfigError(
        f"guidance.interval={list(guidance.interval)} holds none of the sampler's levels: its {len(levels) - 1} steps "
        f"go from sigma / alpha = {high:.4g} down to {low:.4g}; change guidance.interval, sampler.steps or "
        "sampler.spacing"
    )


def sizes(options: UNetOptions) -> str:
    """What a model makes, and of what: two whose predictions are mixed must agree."""
    smaller = low_res_size(options)
    return f"{options.image_size} px" + (f" from {smaller} px" if smaller else "")


def check_classifier(classifier: LoadedModel, recipe: DiffusionRecipe) -> None:
    """The classifier must see what the model makes: the same size, classes and noise schedule."""
    if not isinstance(classifier.recipe, ClassifierRecipe):
        raise ConfigError(
            f"guidance.classifier={classifier.path} is a {classifier.recipe.task} model: give a noise-aware classifier"
        )
    ours, theirs = recipe.model, classifier.recipe.model
    pairs = [
        ("image size", ours.image_size, theirs.image_size),
        ("number of channels", ours.in_channels, theirs.in_channels),
        ("number of classes", ours.num_classes or theirs.num_classes, theirs.num_classes),
    ]
    for what, wanted, found in pairs:
        if wanted != found:
            raise ConfigError(
                f"guidance.classifier={classifier.path} has {what} {found}, the model has {wanted}: give a classifier "
                "of the model's images"
            )
    check_process("guidance.classifier", classifier.path, classifier.recipe.diffusion, recipe.diffusion)


def check_process(key: str, path: str, theirs: DiffusionOptions, ours: DiffusionOptions) -> None:
    """Two networks that see the same x_t must know the same noise levels, and be told of them alike."""
    found, wanted = noise_levels(theirs), noise_levels(ours)
    if found != wanted:
        raise ConfigError(
            f"{key}={path} was trained on the {found}, the model on the {wanted}: give one of the model's"
        )


def noise_levels(options: DiffusionOptions) -> str:
    """The noise levels of a process, and how its networks are told of them."""
    if options.schedule == "log_snr":
        return f"log_snr schedule from {options.log_snr_min} to {options.log_snr_max}"
    levels = f"{options.schedule} schedule of {options.num_timesteps} timesteps"
    return levels if time_scale(options) == 1 else f"{levels}, rescaled to 1000"
