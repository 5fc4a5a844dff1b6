"""From loaded models and settings to images. Knows no files and no ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.denoiser import Denoiser, Model, clipped, model_denoiser
from dist_diffusion.diffusion.guidance import (
    Gradient,
    classifier_free,
    classifier_gradient,
    guided_by_model,
    score_shifted,
)
from dist_diffusion.diffusion.options import GuidanceOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.errors import NonFiniteError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling import plan
from dist_diffusion.sampling.low_res import LowRes, check_low_res
from dist_diffusion.sampling.models import Models, check_guidance, diffusion_recipe
from dist_diffusion.sampling.noise import ImageNoise
from dist_diffusion.sampling.pixels import not_finite, to_uint8
from dist_diffusion.weights.load import LoadedModel

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
        check_finite(x, indices)
        return to_uint8(x), chosen

    return generate


def job_labels(seed: int, indices: Sequence[int], num_classes: int, low_res: LowRes | None) -> np.ndarray | None:
    """Int64 labels of images: those of the smaller images, where there are any, else drawn."""
    if low_res is not None:
        return low_res.labels(indices)
    if not num_classes:
        return None
    return np.array([plan.label(seed, i, num_classes) for i in indices], dtype=np.int64)


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


def check_finite(x: torch.Tensor, indices: Sequence[int]) -> None:
    """NonFiniteError names the images that are no images."""
    wrong = not_finite(x, indices)
    if wrong:
        raise NonFiniteError(
            f"images {', '.join(map(str, wrong))} are not finite: the weights are not, or the guidance drove them "
            "there (lower its scale, or begin at a less noisy level, see docs/sampling.md)"
        )
