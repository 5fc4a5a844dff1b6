"""Per-sample training losses, (N,)."""

import math

import torch

from dist_diffusion.diffusion.gaussians import Process, normal_kl, reverse_log_variance
from dist_diffusion.diffusion.likelihood import discretized_gaussian_log_likelihood
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, broadcast


def mean_flat(values: torch.Tensor) -> torch.Tensor:
    """The mean of each sample, (N,)."""
    return values.flatten(1).mean(1)


def simple(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_simple (arXiv 2006.11239, equation 14): the squared error of what the network predicts, (N,)."""
    return mean_flat((target - predicted) ** 2)


def snr_weight(objective: ObjectiveOptions, options: DiffusionOptions, level: Coefficients) -> torch.Tensor | float:
    """What the squared error of a prediction is weighted with at a level's signal-to-noise ratio alpha^2 / sigma^2.

    As a weight of the image's squared error it is min(SNR, gamma) for min_snr (arXiv 2303.09556, equation 7), and
    SNR + 1 / sigma_data^2 for edm (arXiv 2206.00364, table 1, with sigma^2 = 1 / SNR). The noise's error is SNR times
    the image's, that of v SNR + 1 times, that of prediction edm SNR + 1 / sigma_data^2 times, the mean's the square of
    its coefficient times, which is divided out: for prediction edm, uniform and edm are the same.
    """
    if objective.weighting == "uniform":
        return 1.0
    alpha, sigma = torch.as_tensor(level.alpha).flatten(), torch.as_tensor(level.sigma).flatten()
    snr = (alpha / sigma) ** 2
    of_edm = snr + options.sigma_data**-2
    weight = snr.clamp(max=objective.min_snr_gamma) if objective.weighting == "min_snr" else of_edm
    if options.prediction == "eps":
        return weight / snr
    if options.prediction == "mean":
        return weight / torch.as_tensor(level.posterior_x0).flatten() ** 2
    if options.prediction == "edm":
        return weight / of_edm
    return weight / (snr + 1) if options.prediction == "v" else weight


def step_log_variance(
    process: Process, options: DiffusionOptions, variance: torch.Tensor | None, t: torch.Tensor, like: torch.Tensor
) -> torch.Tensor:
    """The log variance of the reverse steps from timesteps t, broadcastable over `like`; see `reverse_log_variance`."""
    bounds = (process.beta[t].log(), process.posterior_log_variance[t], process.large_log_variance[t])
    return reverse_log_variance(options, variance, *(broadcast(bound, like) for bound in bounds))


def variational_bound(
    process: Process,
    x0: torch.Tensor,
    predicted_x0: torch.Tensor,
    log_variance: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """The VLB's term at t, in bits per dimension (arXiv 2102.09672, equations 4 to 7).

    Pass `predicted_x0` detached where the bound is to train the variance alone (section 3.1 there).
    """
    level, _ = process.levels(t, x0)
    true_mean = level.posterior_x0 * x0 + level.posterior_x_t * x_t
    mean = level.posterior_x0 * predicted_x0 + level.posterior_x_t * x_t
    true_log_variance = broadcast(process.posterior_log_variance[t], x0)
    return bound_term(x0, true_mean, true_log_variance, mean, log_variance, last=t == 0)


def bound_term(
    x0: torch.Tensor,
    true_mean: torch.Tensor,
    true_log_variance: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor,
    last: torch.Tensor,
) -> torch.Tensor:
    """KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), or where `last` (N,) -log p(x0 | x_t), in bits per dimension."""
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)
    return torch.where(last, mean_flat(decoder), mean_flat(kl)) / math.log(2)
