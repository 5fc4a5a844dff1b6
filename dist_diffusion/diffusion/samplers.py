"""Samplers: handed a denoiser, a path of levels (noisiest first, clean last) and noise; nothing else."""

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
        sigma = ddim_sigma(level, following, eta) if eta else 0.0
        x = following.alpha * prediction.x0 + ddim_direction(following, sigma) * prediction.direction
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
        x = noisier.alpha * prediction.x0 + ddim_direction(noisier, 0.0) * prediction.eps
    return x


def ddim_sigma(level: Level, following: Level, eta: float) -> float:
    """The standard deviation of a DDIM step's noise (arXiv 2010.02502, equation 16)."""
    bar, following_bar = alpha_bar(level), alpha_bar(following)
    # A level so clean that its float32 alpha_bar is 1 is followed by a cleaner one: 0 / 0 stands for 0.
    ratio = (1 - following_bar) / (1 - bar).clamp(min=torch.finfo(bar.dtype).tiny)
    return (eta * ratio.sqrt() * (1 - bar / following_bar).sqrt()).item()


def ddim_direction(following: Level, sigma: float) -> float:
    """The factor of eps in a DDIM step's mean: sqrt(1 - alpha_bar - sigma^2) (arXiv 2010.02502, equation 12)."""
    return (1 - alpha_bar(following) - sigma**2).clamp(min=0).sqrt().item()


def alpha_bar(level: Level) -> torch.Tensor:
    """A level's share of signal as the released DDIM has it: in float32, so that its images can be had again."""
    return torch.tensor(level.alpha**2, dtype=torch.float32)
