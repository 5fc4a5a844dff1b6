"""The denoiser contract: what every model is to every guidance and sampler.

A denoiser maps (x_t, level, labels) to a Prediction. Guidance maps denoisers to denoisers; a sampler is handed one
and never sees a model, a schedule or label dropout.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from dist_diffusion.diffusion.gaussians import make_process, reverse_log_variance
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import LEARNED_VARIANCES, DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, eps_from, image_of, noise_of, x0_from
from dist_diffusion.diffusion.schedules import time_scale


class Prediction(NamedTuple):
    """A denoiser's answer: images like x_t; the log variance of the reverse step, or None where it predicts none."""

    x0: torch.Tensor
    eps: torch.Tensor
    log_variance: torch.Tensor | None


Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Denoiser = Callable[[torch.Tensor, Level, torch.Tensor | None], Prediction]


def from_eps(x_t: torch.Tensor, level: Level, eps: torch.Tensor, log_variance: torch.Tensor | None) -> Prediction:
    """The prediction that belongs to a noise estimate."""
    return Prediction(image_of(x_t, eps, level.alpha, level.sigma), eps, log_variance)


def from_x0(x_t: torch.Tensor, level: Level, x0: torch.Tensor, log_variance: torch.Tensor | None) -> Prediction:
    """The prediction that belongs to an image estimate."""
    return Prediction(x0, noise_of(x_t, x0, level.alpha, level.sigma), log_variance)


def model_denoiser(model: Model, options: DiffusionOptions) -> Denoiser:
    """The denoiser of a network that predicts as `options` say, and its step's variance where that is learned."""
    coefficients = level_coefficients(options)

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        time = torch.full((len(x_t),), level.model_time, device=x_t.device)
        output = model(x_t, time, labels).float()
        predicted, variance = split(output, options)
        at = coefficients(level)
        x0 = x0_from(options.prediction, predicted, x_t, at)
        eps = eps_from(options.prediction, predicted, x_t, at)
        return Prediction(x0, eps, level_log_variance(options, level, variance, x_t))

    return denoise


def level_coefficients(options: DiffusionOptions) -> Callable[[Level], Coefficients]:
    """From a level to its coefficients. A predicted mean is of the trained process's step, however it is respaced."""
    if options.prediction != "mean":
        return lambda level: Coefficients(level.alpha, level.sigma)
    process = make_process(options)
    tables = process.posterior_x0.tolist(), process.posterior_x_t.tolist()

    def coefficients(level: Level) -> Coefficients:
        t = round(level.model_time / time_scale(options))
        return Coefficients(level.alpha, level.sigma, tables[0][t], tables[1][t])

    return coefficients


def split(output: torch.Tensor, options: DiffusionOptions) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A network's output as its prediction and, where the variance is learned, the other half of its channels."""
    if options.variance not in LEARNED_VARIANCES:
        return output, None
    predicted, variance = output.chunk(2, dim=1)
    return predicted, variance


def level_log_variance(
    options: DiffusionOptions, level: Level, variance: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor:
    """The log variance of the reverse step from `level`."""
    bounds = (level.log_beta, level.log_posterior_variance, level.log_large_variance)
    return reverse_log_variance(options, variance, *(torch.full((), bound, device=like.device) for bound in bounds))


def clipped(denoiser: Denoiser) -> Denoiser:
    """The same denoiser with x0 limited to the images' range [-1, 1], eps following it."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        x0, _, log_variance = denoiser(x_t, level, labels)
        return from_x0(x_t, level, x0.clamp(-1, 1), log_variance)

    return denoise
