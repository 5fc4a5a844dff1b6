"""From loaded models and settings to images. Knows no files and no ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe
from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.denoiser import Denoiser, Model, clipped, model_denoiser
from dist_diffusion.diffusion.guidance import (
    Gradient,
    classifier_free,
    classifier_gradient,
    guided_by_model,
    score_shifted,
)
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels, time_scale
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling import plan
from dist_diffusion.sampling.low_res import LowRes, check_low_res, low_res_size
from dist_diffusion.sampling.noise import ImageNoise
from dist_diffusion.weights.load import LoadedModel


@dataclass(frozen=True)
class Models:
    """The networks of a job, as its guidance mode needs them."""

    model: LoadedModel
    classifier: LoadedModel | None = None
    unconditional: LoadedModel | None = None


Generate = Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray | None]]
"""Image indices to uint8 NHWC images and int64 labels (None for an unconditional job)."""


def make_generator(
    models: Models,
    sampler: SamplerOptions,
    guidance: GuidanceOptions,
    seed: int,
    device: torch.device | str,
    low_res: LowRes | None = None,
) -> Generate:
    """The function that makes images of given indices. ConfigError where models, `low_res` (what a super-resolution
    model starts from) and settings do not fit together.
    """
    recipe, options = diffusion_recipe(models.model)
    check_guidance(models, guidance)
    num_classes = label_classes(models, options)
    check_low_res(models.model.path, options, num_classes, low_res)
    levels = sampling_levels(recipe.diffusion, sampler.steps)
    gradient = scaled_gradient(models, guidance)
    assert options.image_size is not None
    shape = (options.in_channels, options.image_size, options.image_size)
    # The stages of a cascade may have one seed: each draws noise of its own.
    stream = "sample_noise" if low_res is None else f"sample_noise/{options.image_size}"

    def generate(indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        noise = ImageNoise(seed, stream, indices, shape, device)
        chosen = job_labels(seed, indices, num_classes, low_res)
        labels = None if chosen is None else torch.from_numpy(chosen).to(device)
        smaller = None if low_res is None else low_res.images(indices, device)
        denoiser = base_denoiser(models, guidance, recipe, smaller)
        denoiser = clipped(denoiser) if sampler.clip_x0 else denoiser
        if sampler.name == "ddpm":
            x = samplers.ddpm(denoiser, levels, noise(), noise, labels, gradient)
        else:
            guided = denoiser if gradient is None else score_shifted(denoiser, gradient)
            x = samplers.ddim(guided, levels, noise(), noise, labels, sampler.eta)
        return to_uint8(x), chosen

    return generate


def job_labels(seed: int, indices: Sequence[int], num_classes: int, low_res: LowRes | None) -> np.ndarray | None:
    """Int64 labels of images: those of the smaller images, where there are any, else drawn."""
    if low_res is not None:
        return low_res.labels(indices)
    if not num_classes:
        return None
    return np.array([plan.label(seed, i, num_classes) for i in indices], dtype=np.int64)


def diffusion_recipe(model: LoadedModel, key: str = "model") -> tuple[DiffusionRecipe, UNetOptions]:
    """The recipe of a diffusion or super-resolution model; ConfigError where it is a classifier's."""
    if not isinstance(model.recipe, DiffusionRecipe):
        raise ConfigError(f"{key}={model.path} is a {model.recipe.task}; sampling needs a diffusion model")
    return model.recipe, model.recipe.model


def base_denoiser(
    models: Models, guidance: GuidanceOptions, recipe: DiffusionRecipe, low_res: torch.Tensor | None
) -> Denoiser:
    """The conditional branch, or with cfg and both the classifier-free mix."""
    conditional = model_denoiser(conditioned(models.model, low_res), recipe.diffusion)
    if guidance.mode not in ("cfg", "both"):
        return conditional
    if models.unconditional is not None:
        reference, _ = diffusion_recipe(models.unconditional)
        other = model_denoiser(conditioned(models.unconditional, low_res), reference.diffusion)
        return guided_by_model(conditional, other, guidance.cfg_scale)
    assert recipe.model.num_classes
    return classifier_free(conditional, guidance.cfg_scale, null_label=recipe.model.num_classes)


def conditioned(loaded: LoadedModel, low_res: torch.Tensor | None) -> Model:
    """The network as samplers and guidance know it; of super-resolution, given its batch's smaller images."""
    if low_res is None:
        return loaded.module

    def model(x_t: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        # Classifier-free guidance sends the batch through twice at once.
        return loaded.module(x_t, time, labels, low_res.repeat(len(x_t) // len(low_res), 1, 1, 1))

    return model


def scaled_gradient(models: Models, guidance: GuidanceOptions) -> Gradient | None:
    """The classifier's gradient, in the modes that use it."""
    if guidance.mode not in ("classifier", "both"):
        return None
    assert models.classifier is not None
    return classifier_gradient(models.classifier.module, guidance.classifier_scale)


def label_classes(models: Models, options: UNetOptions) -> int:
    """From how many classes labels are drawn: the model's, or for an unconditional one the classifier's."""
    if options.num_classes or models.classifier is None:
        return options.num_classes or 0
    return models.classifier.recipe.model.num_classes or 0


def check_guidance(models: Models, guidance: GuidanceOptions) -> None:
    """ConfigError where the mode cannot work with these models."""
    recipe, options = diffusion_recipe(models.model)
    if guidance.mode in ("cfg", "both"):
        check_unconditional(models, options)
    if models.classifier is not None:
        check_classifier(models.classifier, recipe)


def check_unconditional(models: Models, options: UNetOptions) -> None:
    """Classifier-free guidance needs labels and an unconditional estimate."""
    if not options.num_classes:
        raise ConfigError(f"guidance.mode: {models.model.path} is unconditional, classifier-free guidance needs labels")
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


def sizes(options: UNetOptions) -> str:
    """What a model makes, and of what: two whose predictions are mixed must agree."""
    smaller = low_res_size(options)
    return f"{options.image_size} px" + (f" from {smaller} px" if smaller else "")


def check_classifier(classifier: LoadedModel, recipe: DiffusionRecipe) -> None:
    """The classifier must see what the model makes: the same size, classes and noise schedule."""
    if not isinstance(classifier.recipe, ClassifierRecipe):
        raise ConfigError(f"guidance.classifier={classifier.path} is a {classifier.recipe.task} model")
    ours, theirs = recipe.model, classifier.recipe.model
    pairs = [
        ("image size", ours.image_size, theirs.image_size),
        ("number of classes", ours.num_classes or theirs.num_classes, theirs.num_classes),
    ]
    for what, wanted, found in pairs:
        if wanted != found:
            raise ConfigError(f"guidance.classifier={classifier.path} has {what} {found}, the model has {wanted}")
    check_process("guidance.classifier", classifier.path, classifier.recipe.diffusion, recipe.diffusion)


def check_process(key: str, path: str, theirs: DiffusionOptions, ours: DiffusionOptions) -> None:
    """Two networks that see the same x_t must know the same noise levels, and be told of them alike."""
    found, wanted = noise_levels(theirs), noise_levels(ours)
    if found != wanted:
        raise ConfigError(f"{key}={path} was trained on the {found}, the model on the {wanted}")


def noise_levels(options: DiffusionOptions) -> str:
    """The noise levels of a process, and how its networks are told of them."""
    if options.schedule == "log_snr":
        return f"log_snr schedule from {options.log_snr_min} to {options.log_snr_max}"
    levels = f"{options.schedule} schedule of {options.num_timesteps} timesteps"
    return levels if time_scale(options) == 1 else f"{levels}, rescaled to 1000"


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1], NCHW, as uint8 NHWC (truncated, as the released samplers do)."""
    pixels = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
