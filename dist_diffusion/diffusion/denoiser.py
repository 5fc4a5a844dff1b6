"""The denoiser contract: what every model is to every guidance and sampler.

A denoiser maps (x_t, level, labels) to a Prediction. Guidance maps denoisers to denoisers; a sampler is handed one
and never sees a model, a schedule or label dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import eps_from_v


@dataclass(frozen=True)
class Level:
    """One noise level: x_t = alpha x0 + sigma eps.

    `model_time` is what the network is told. The two log variances bound the reverse step from this level to the
    next of its path; a learned-range model interpolates between them.
    """

    alpha: float
    sigma: float
    model_time: float
    log_beta: float = 0.0
    log_posterior_variance: float = 0.0


class Prediction(NamedTuple):
    """A denoiser's answer: images like x_t; the log variance of the reverse step, or None where it predicts none."""

    x0: torch.Tensor
    eps: torch.Tensor
    log_variance: torch.Tensor | None


Model = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Denoiser = Callable[[torch.Tensor, Level, torch.Tensor | None], Prediction]


def from_eps(x_t: torch.Tensor, level: Level, eps: torch.Tensor, log_variance: torch.Tensor | None) -> Prediction:
    """The prediction that belongs to a noise estimate: x0 = (x_t - sigma eps) / alpha."""
    return Prediction((x_t - level.sigma * eps) / level.alpha, eps, log_variance)


def from_x0(x_t: torch.Tensor, level: Level, x0: torch.Tensor, log_variance: torch.Tensor | None) -> Prediction:
    """The prediction that belongs to an image estimate: eps = (x_t - alpha x0) / sigma."""
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma, log_variance)


def model_denoiser(model: Model, options: DiffusionOptions) -> Denoiser:
    """The denoiser of a network that predicts noise or v, and its step's variance where that is learned."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        time = torch.full((len(x_t),), level.model_time, device=x_t.device)
        output = model(x_t, time, labels).float()
        eps = output[:, : x_t.shape[1]]
        if options.prediction == "v":
            eps = eps_from_v(x_t, eps, level.alpha, level.sigma)
        return from_eps(x_t, level, eps, step_log_variance(options, level, output))

    return denoise


def step_log_variance(options: DiffusionOptions, level: Level, output: torch.Tensor) -> torch.Tensor:
    """The reverse step's log variance: fixed, or interpolated by the network (arXiv 2102.09672, equation 15)."""
    if options.variance == "learned_range":
        fraction = (output.chunk(2, dim=1)[1] + 1) / 2
        return fraction * level.log_beta + (1 - fraction) * level.log_posterior_variance
    if options.variance == "fixed_small":
        return torch.full((), level.log_posterior_variance, device=output.device)
    # fixed_large: the last step's beta is replaced by the posterior's variance, as it adds no noise of its own.
    last = level.model_time == 0
    return torch.full((), level.log_posterior_variance if last else level.log_beta, device=output.device)


def clipped(denoiser: Denoiser) -> Denoiser:
    """The same denoiser with x0 limited to the images' range [-1, 1], eps following it."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        x0, _, log_variance = denoiser(x_t, level, labels)
        return from_x0(x_t, level, x0.clamp(-1, 1), log_variance)

    return denoise
