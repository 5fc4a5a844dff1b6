"""The denoiser contract: what every model is to every guidance and sampler.

A denoiser maps (x_t, level, labels) to a Prediction. Guidance maps denoisers to denoisers; a sampler is handed one
and never sees a model, a schedule or label dropout.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from dist_diffusion.diffusion.gaussians import make_process, reverse_log_variance
from dist_diffusion.diffusion.levels import ROUNDING, Level
from dist_diffusion.diffusion.options import LEARNED_VARIANCES, DiffusionOptions
from dist_diffusion.diffusion.parameterizations import (
    Coefficients,
    eps_from,
    image_of,
    network_input,
    noise_of,
    x0_from,
)
from dist_diffusion.diffusion.schedules import time_scale
from dist_diffusion.diffusion.timeline import Timeline
from dist_diffusion.errors import ConfigError


class Prediction(NamedTuple):
    """A denoiser's answer: images like x_t; the log variance of the reverse step, or None where it predicts none."""

    x0: torch.Tensor
    eps: torch.Tensor
    log_variance: torch.Tensor | None
    renoise: torch.Tensor | None = None
    """What CFG++ noises x0 with again in place of eps."""

    @property
    def direction(self) -> torch.Tensor:
        """The noise that a deterministic step puts back."""
        return self.eps if self.renoise is None else self.renoise


Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Denoiser = Callable[[torch.Tensor, Level, torch.Tensor | None], Prediction]
EdmDenoiser = Callable[[torch.Tensor, float, torch.Tensor | None], torch.Tensor]


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
        at = coefficients(level)
        output = model(network_input(options, x_t, at), time, labels).float()
        predicted, variance = split(output, options)
        x0 = x0_from(options, predicted, x_t, at)
        eps = eps_from(options, predicted, x_t, at)
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


def edm_denoiser(denoiser: Denoiser, times: Timeline) -> EdmDenoiser:
    """The same denoiser as EDM's D(x, sigma, labels): x0 of x = x0 + sigma n, n standard normal (arXiv 2206.00364).

    ConfigError where sigma is none that the network was trained on. Predictions of the mean are of whole timesteps, and
    have no such view.
    """

    def denoise(x: torch.Tensor, sigma: float, labels: torch.Tensor | None) -> torch.Tensor:
        if not times.sigma_min * (1 - ROUNDING) <= sigma <= times.sigma_max * (1 + ROUNDING):
            raise ConfigError(
                f"sigma={sigma:.6g}: the model was trained from {times.sigma_min:.6g} to {times.sigma_max:.6g}, stay "
                "within"
            )
        level = times.level(sigma)
        return denoiser(level.alpha * x, level, labels).x0

    return denoise


def clipped(denoiser: Denoiser) -> Denoiser:
    """The same denoiser with x0 limited to the images' range [-1, 1], eps following it."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        found = denoiser(x_t, level, labels)
        return from_x0(x_t, level, found.x0.clamp(-1, 1), found.log_variance)._replace(renoise=found.renoise)

    return denoise
