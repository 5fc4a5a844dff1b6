"""Bits per dimension of Gaussian images, where every term has a closed form."""

import math
from itertools import pairwise

import pytest
import torch

from dist_diffusion.diffusion.bits import Bits, bits_per_dimension, prior_bits
from dist_diffusion.diffusion.denoiser import Denoiser, Prediction, from_eps
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import sampling_levels

STD = 0.2
LN2 = math.log(2)


def images(num: int) -> torch.Tensor:
    """Of grey levels that are N(0, STD^2) but for their rounding."""
    x0 = STD * torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return ((x0 + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def uncertainty(level: Level) -> float:
    """Var(x0 | x_t)."""
    return (STD * level.sigma) ** 2 / ((level.alpha * STD) ** 2 + level.sigma**2)


def coefficient(level: Level, following: Level) -> float:
    """Of x0 in the posterior's mean."""
    return (1 - (level.alpha / following.alpha) ** 2) * following.alpha / level.sigma**2


def exact(levels: list[Level], optimal: bool) -> Denoiser:
    """E[x0 | x_t]; with `optimal` the variance of x_{t-1} given x_t alone, else of the posterior."""
    steps = dict(pairwise(levels))

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        eps = level.sigma / ((level.alpha * STD) ** 2 + level.sigma**2) * x_t
        variance = math.exp(level.log_posterior_variance)
        if optimal:
            following = steps[level]
            posterior = (1 - (level.alpha / following.alpha) ** 2) * (following.sigma / level.sigma) ** 2
            variance = posterior + coefficient(level, following) ** 2 * uncertainty(level)
        return from_eps(x_t, level, eps, torch.tensor(math.log(variance)))

    return denoise


def measured(levels: list[Level], optimal: bool, num: int = 8) -> Bits:
    x0, generator = images(num), torch.Generator().manual_seed(1)
    noise = lambda: torch.randn(x0.shape, generator=generator)  # noqa: E731
    return bits_per_dimension(exact(levels, optimal), levels, x0, noise, None)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_snr"])
@pytest.mark.parametrize("steps", ["10", "100"])
def test_the_true_reverse_steps_give_the_images_own_likelihood(schedule: str, steps: str) -> None:
    """A Gaussian's reverse steps are Gaussians, so the bound is tight, however few they are."""
    # Far below a grey level's width, where log_snr ends by default, rounded images are no Gaussian any more.
    options = DiffusionOptions(schedule=schedule, log_snr_max=9.0, variance="fixed_small")  # type: ignore[arg-type]
    levels = sampling_levels(options, steps)
    edges = torch.distributions.Normal(0.0, math.sqrt(STD**2 + (2 / 255) ** 2 / 12))
    x0 = images(8).double()
    likelihood = (edges.cdf(x0 + 1 / 255) - edges.cdf(x0 - 1 / 255)).log().mean().item() / -LN2
    found = measured(levels, optimal=True)
    assert found.total.mean().item() == pytest.approx(likelihood, abs=0.06)
    torch.testing.assert_close(found.total, found.prior + found.terms.sum(1))


def test_terms_are_the_kls_of_an_exact_network() -> None:
    """With the posterior's variance a term is (coefficient of x0)^2 E(x0 - x0')^2 / (2 variance)."""
    levels = sampling_levels(DiffusionOptions(variance="fixed_small"), "25")
    found = measured(levels, optimal=False, num=32)
    steps = list(pairwise(levels))
    x0_mse = torch.tensor([uncertainty(level) for level, _ in steps])
    ratio = torch.tensor([(level.alpha / level.sigma) ** 2 for level, _ in steps])
    kls = torch.tensor(
        [
            coefficient(level, following) ** 2 * uncertainty(level) / (2 * LN2 * math.exp(level.log_posterior_variance))
            for level, following in steps[:-1]
        ]
    )
    torch.testing.assert_close(found.x0_mse.mean(0), x0_mse, rtol=0.05, atol=0)
    torch.testing.assert_close(found.eps_mse.mean(0), ratio * x0_mse, rtol=0.05, atol=0)
    torch.testing.assert_close(found.terms.mean(0)[:-1], kls, rtol=0.05, atol=0)


def test_the_prior_term_is_the_kl_of_two_gaussians() -> None:
    x0 = images(4)
    level = Level(alpha=0.3, sigma=math.sqrt(1 - 0.09), model_time=0.0)
    expected = 0.5 * ((0.3 * x0) ** 2 + 0.91 - 1 - math.log(0.91)).flatten(1).mean(1) / LN2
    torch.testing.assert_close(prior_bits(level, x0), expected)
    noisiest = sampling_levels(DiffusionOptions(), "1000")[0]
    assert prior_bits(noisiest, x0).max() < 1e-5
