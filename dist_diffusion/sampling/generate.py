"""From loaded models and settings to images. Knows no files and no ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dist_diffusion.diffusion import samplers, solvers
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, SamplerOptions
from dist_diffusion.diffusion.spacing import check_whole_timesteps, churned_levels, sampler_levels
from dist_diffusion.diffusion.timeline import timeline
from dist_diffusion.errors import NonFiniteError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling import plan
from dist_diffusion.sampling.cost import Evaluations
from dist_diffusion.sampling.guide import Guide
from dist_diffusion.sampling.low_res import LowRes, check_low_res
from dist_diffusion.sampling.models import Models, check_guidance, check_interval, diffusion_recipe
from dist_diffusion.sampling.noise import ImageNoise
from dist_diffusion.sampling.pixels import not_finite, to_uint8

Walk = Callable[[Guide, samplers.Noise, torch.Tensor | None], torch.Tensor]
"""A sampler on its path: guide, noise and labels to images in about [-1, 1]."""


@dataclass(frozen=True)
class Generator:
    """Makes the images of given indices, and counts the evaluations of networks."""

    models: Models
    guidance: GuidanceOptions
    clip_x0: bool
    walk: Walk
    seed: int
    device: torch.device | str
    low_res: LowRes | None
    evaluations: Evaluations

    def __call__(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Uint8 NHWC images and int64 labels (None for an unconditional job). NonFiniteError names bad images."""
        _, options = diffusion_recipe(self.models.model)
        noise = self.noise(indices, options)
        chosen = job_labels(self.seed, indices, label_classes(self.models, options), self.low_res)
        labels = None if chosen is None else torch.from_numpy(chosen).to(self.device)
        smaller = None if self.low_res is None else self.low_res.images(indices, self.device)
        guide = Guide(self.models, self.guidance, self.clip_x0, self.evaluations, smaller)
        x = self.walk(guide, noise, labels)
        check_finite(x, indices)
        return to_uint8(x), chosen

    def noise(self, indices: Sequence[int], options: UNetOptions) -> ImageNoise:
        """Of each image its own."""
        assert options.image_size is not None
        shape = (options.in_channels, options.image_size, options.image_size)
        # The stages of a cascade may have one seed: each draws noise of its own.
        stream = "sample_noise" if self.low_res is None else f"sample_noise/{options.image_size}"
        return ImageNoise(self.seed, stream, indices, shape, self.device)


def make_generator(
    models: Models,
    sampler: SamplerOptions,
    guidance: GuidanceOptions,
    seed: int,
    device: torch.device | str,
    low_res: LowRes | None = None,
) -> Generator:
    """The function that makes images of given indices. ConfigError where models, `low_res` (what a super-resolution
    model starts from) and settings do not fit together.
    """
    recipe, options = diffusion_recipe(models.model)
    check_guidance(models, guidance)
    check_low_res(models.model.path, options, label_classes(models, options), low_res)
    levels = sampler_levels(recipe.diffusion, sampler)
    for other in (models.unconditional, models.weaker):
        if other is not None:
            check_whole_timesteps(diffusion_recipe(other)[0].diffusion, sampler)
    check_interval(guidance, levels)
    walk = make_walk(recipe.diffusion, sampler, levels)
    return Generator(models, guidance, sampler.clip_x0, walk, seed, device, low_res, Evaluations())


def make_walk(options: DiffusionOptions, sampler: SamplerOptions, levels: list[Level]) -> Walk:
    """The sampler of the options. A classifier shifts the mean of `ddpm`, in all others it is in the score."""
    if sampler.name == "ddpm":
        return lambda guide, noise, labels: samplers.ddpm(
            guide.denoiser(), levels, noise(), noise, labels, guide.gradient()
        )
    if sampler.name == "ddim":
        return lambda guide, noise, labels: samplers.ddim(
            guide.score_form(), levels, noise(), noise, labels, sampler.eta
        )
    if sampler.name in ("euler", "heun"):
        solver = solvers.euler if sampler.name == "euler" else solvers.heun
        raised = churned_levels(levels, sampler, timeline(options))
        return lambda guide, noise, labels: solver(
            guide.score_form(), levels, noise(), noise, labels, raised, sampler.churn_noise
        )
    multistep = {"dpmpp_2m": solvers.dpmpp_2m, "dpmpp_sde": solvers.dpmpp_sde, "unipc": solvers.unipc}[sampler.name]
    return lambda guide, noise, labels: multistep(guide.score_form(), levels, noise(), noise, labels)


def job_labels(seed: int, indices: Sequence[int], num_classes: int, low_res: LowRes | None) -> np.ndarray | None:
    """Int64 labels of images: those of the smaller images, where there are any, else drawn."""
    if low_res is not None:
        return low_res.labels(indices)
    if not num_classes:
        return None
    return np.array([plan.label(seed, i, num_classes) for i in indices], dtype=np.int64)


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
            "there (lower its scale, or begin at a less noisy level, see docs/guidance.md)"
        )
