"""Samplers: handed a denoiser, a path of levels (noisiest first, clean last) and noise; nothing else."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from dist_diffusion.diffusion.denoiser import Denoiser
from dist_diffusion.diffusion.gaussians import posterior_mean
from dist_diffusion.diffusion.guidance import Gradient
from dist_diffusion.diffusion.levels import NOISE, Level

Noise = Callable[[], torch.Tensor]
"""Each call is the next batch of standard normal noise, shaped like x."""


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x: torch.Tensor,
    noise: Noise,
    labels: torch.Tensor | None,
    mean_shift: Gradient | None = None,
) -> torch.Tensor:
    """Ancestral sampling (arXiv 2006.11239, Algorithm 2) from x_T; `mean_shift` g moves each mean by Sigma g
    (arXiv 2105.05233, Algorithm 1).
    """
    for level, following in pairwise(levels):
        prediction = denoiser(x, level, labels)
        assert prediction.log_variance is not None, "ancestral sampling needs a model with a step variance"
        mean = posterior_mean(prediction.x0, x, level, following)
        if mean_shift is not None:
            mean = mean + prediction.log_variance.exp() * mean_shift(x, level, labels)
        z = noise()
        x = mean + torch.exp(0.5 * prediction.log_variance) * z if following.sigma else mean
    return x


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x: torch.Tensor,
    noise: Noise,
    labels: torch.Tensor | None,
    eta: float = 0.0,
) -> torch.Tensor:
    """DDIM from x_T (arXiv 2010.02502, equations 12 and 16)."""
    for level, following in pairwise(levels):
        prediction = denoiser(x, level, labels)
        sigma = eta * ddim_sigma(level, following)
        direction = math.sqrt(following.sigma**2 - sigma**2)
        x = following.alpha * prediction.x0 + direction * prediction.eps
        if eta:
            x = x + sigma * noise()
    return x


@torch.no_grad()
def ddim_encode(
    denoiser: Denoiser, levels: Sequence[Level], x: torch.Tensor, labels: torch.Tensor | None
) -> torch.Tensor:
    """From images to the noise that `ddim` at eta = 0 makes them of (arXiv 2010.02502, section 4.3).

    The path is the sampler's, walked backwards; the noisiest level is followed by pure noise, as in the released code.
    """
    for level, noisier in pairwise([*reversed(levels[:-1]), NOISE]):
        prediction = denoiser(x, level, labels)
        x = noisier.alpha * prediction.x0 + noisier.sigma * prediction.eps
    return x


def ddim_sigma(level: Level, following: Level) -> float:
    """The standard deviation of a DDIM step at eta = 1 (arXiv 2010.02502, equation 16)."""
    ratio = following.sigma / level.sigma
    return ratio * math.sqrt(max(0.0, 1 - (level.alpha / following.alpha) ** 2))
