"""Per-sample training losses of the noise-predicting process."""

import math

import torch

from dist_diffusion.diffusion.gaussians import Process, at, normal_kl
from dist_diffusion.diffusion.likelihood import discretized_gaussian_log_likelihood


def mean_flat(values: torch.Tensor) -> torch.Tensor:
    """The mean of each sample, (N,)."""
    return values.flatten(1).mean(1)


def simple(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_simple (arXiv 2006.11239, equation 14): the squared error of what the network predicts, (N,)."""
    return mean_flat((target - predicted) ** 2)


def variational_bound(
    process: Process,
    eps: torch.Tensor,
    fraction: torch.Tensor,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """The VLB's term at t, in bits per dimension, (N,) (arXiv 2102.09672, equations 4 to 7).

    `fraction` is the network's raw variance output in about [-1, 1]. Pass `eps` detached: the bound trains only
    the variance (section 3.1 there).
    """
    posterior_log_variance = at(process.posterior_log_variance, t, x0)
    share = (fraction + 1) / 2
    log_variance = share * at(process.beta.log(), t, x0) + (1 - share) * posterior_log_variance
    from_x0, from_x_t = at(process.posterior_x0, t, x0), at(process.posterior_x_t, t, x0)
    signal, spread = at((1 / process.alpha_bar).sqrt(), t, x0), at((1 / process.alpha_bar - 1).sqrt(), t, x0)
    mean = from_x0 * (signal * x_t - spread * eps) + from_x_t * x_t
    kl = normal_kl(from_x0 * x0 + from_x_t * x_t, posterior_log_variance, mean, log_variance)
    decoder = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    return torch.where(t == 0, mean_flat(decoder), mean_flat(kl)) / math.log(2)
