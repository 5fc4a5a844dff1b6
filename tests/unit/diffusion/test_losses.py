"""Losses: the likelihood is a distribution, and the bound trains only the variance."""

import torch

from dist_diffusion.diffusion import losses
from dist_diffusion.diffusion.gaussians import make_process, normal_kl, q_sample
from dist_diffusion.diffusion.likelihood import discretized_gaussian_log_likelihood
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import betas
from dist_diffusion.diffusion.timesteps import uniform_timesteps


def test_the_discretised_likelihood_sums_to_one_over_the_grey_levels() -> None:
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_scale in [(0.0, -2.0), (-0.97, -3.0), (0.99, 0.5)]:
        log_p = discretized_gaussian_log_likelihood(grey, torch.full_like(grey, mean), torch.full_like(grey, log_scale))
        torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-8, rtol=0)


def test_kl_of_equal_gaussians_is_zero_and_else_positive() -> None:
    mean, log_variance = torch.randn(100), torch.randn(100)
    assert normal_kl(mean, log_variance, mean, log_variance).abs().max() < 1e-6
    assert (normal_kl(mean, log_variance, mean + 0.1, log_variance) > 0).all()


def test_the_bound_is_smallest_for_the_true_noise_and_reaches_only_the_variance() -> None:
    process = make_process(betas(DiffusionOptions()))
    x0, noise, t = (
        torch.rand(8, 3, 4, 4) * 2 - 1,
        torch.randn(8, 3, 4, 4),
        torch.tensor([1, 5, 50, 200, 400, 600, 800, 999]),
    )
    x_t = q_sample(process, x0, t, noise)
    fraction = torch.zeros_like(x0, requires_grad=True)
    true = losses.variational_bound(process, noise, fraction, x0, x_t, t)
    wrong = losses.variational_bound(process, noise + 0.5, fraction, x0, x_t, t)
    assert (true < wrong).all()
    true.sum().backward()
    assert fraction.grad is not None and fraction.grad.abs().sum() > 0


def test_uniform_timesteps_cover_every_timestep() -> None:
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = uniform_timesteps(u, 1000)
    assert torch.equal(torch.bincount(t, minlength=1000), torch.full((1000,), 4))
