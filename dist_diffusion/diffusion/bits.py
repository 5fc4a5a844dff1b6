"""Bits per dimension: the variational bound of images, term by term."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from dist_diffusion.diffusion.denoiser import Denoiser
from dist_diffusion.diffusion.gaussians import normal_kl, posterior_mean
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.losses import bound_term, mean_flat


class Bits(NamedTuple):
    """For N images and a path of S levels, noisiest first: float32 on the images' device."""

    total: torch.Tensor
    """(N,): the bound, in bits per dimension."""
    prior: torch.Tensor
    """(N,): KL(q(x_T | x0) || N(0, 1))."""
    terms: torch.Tensor
    """(N, S): the bound's terms."""
    x0_mse: torch.Tensor
    """(N, S): squared errors of the predicted image."""
    eps_mse: torch.Tensor
    """(N, S): squared errors of the predicted noise."""


@torch.no_grad()
def bits_per_dimension(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x0: torch.Tensor,
    noise: Callable[[], torch.Tensor],
    labels: torch.Tensor | None,
) -> Bits:
    """The variational bound of x0 in [-1, 1] over the steps of a path (arXiv 2006.11239, equation 5).

    `noise` gives one draw a level, shaped like x0.
    """
    terms, x0_mse, eps_mse = [], [], []
    for level, following in pairwise(levels):
        eps = noise()
        x_t = level.alpha * x0 + level.sigma * eps
        prediction = denoiser(x_t, level, labels)
        assert prediction.log_variance is not None, "a bound needs a model with a step variance"
        terms.append(
            bound_term(
                x0,
                posterior_mean(x0, x_t, level, following),
                torch.full((), level.log_posterior_variance, device=x0.device),
                posterior_mean(prediction.x0, x_t, level, following),
                prediction.log_variance,
                torch.full((len(x0),), following.sigma == 0, device=x0.device),
            )
        )
        x0_mse.append(mean_flat((prediction.x0 - x0) ** 2))
        eps_mse.append(mean_flat((prediction.eps - eps) ** 2))
    prior = prior_bits(levels[0], x0)
    steps = torch.stack(terms, dim=1)
    return Bits(steps.sum(dim=1) + prior, prior, steps, torch.stack(x0_mse, dim=1), torch.stack(eps_mse, dim=1))


def prior_bits(noisiest: Level, x0: torch.Tensor) -> torch.Tensor:
    """KL(q(x_T | x0) || N(0, 1)) in bits per dimension, (N,) (arXiv 2006.11239, L_T of equation 5)."""
    zero = torch.zeros((), device=x0.device)
    log_variance = torch.full((), 2 * math.log(noisiest.sigma), device=x0.device)
    return mean_flat(normal_kl(noisiest.alpha * x0, log_variance, zero, zero)) / math.log(2)
