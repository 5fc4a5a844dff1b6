"""The Gaussians of a diffusion process, for one level (sampling) or a batch of timesteps (training)."""

from dataclasses import dataclass, fields

import torch

from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, broadcast
from dist_diffusion.diffusion.schedules import alpha_bars, betas, time_scale


@dataclass(frozen=True)
class Process:
    """Float64 tables over the timesteps of a discrete process, each (T,)."""

    beta: torch.Tensor
    alpha_bar: torch.Tensor
    posterior_log_variance: torch.Tensor
    """log of beta~; its first entry, log 0, is replaced by its second."""
    large_log_variance: torch.Tensor
    """log of beta; its first entry is that of the posterior."""
    posterior_x0: torch.Tensor
    """Coefficient of x0 in the posterior's mean."""
    posterior_x_t: torch.Tensor
    """Coefficient of x_t in the posterior's mean."""
    model_times: torch.Tensor
    """What the network is told at each timestep."""

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.beta)

    def to(self, device: torch.device) -> "Process":
        """The tables on a device, so that looking one up copies nothing."""
        return Process(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def levels(self, t: torch.Tensor, like: torch.Tensor) -> tuple[Coefficients, torch.Tensor]:
        """Coefficients that broadcast over `like` (N, ...), and what the network is told (N,), at timesteps t (N,)."""
        alpha_bar = self.alpha_bar[t]
        parts = (alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), self.posterior_x0[t], self.posterior_x_t[t])
        return Coefficients(*(broadcast(part, like) for part in parts)), self.model_times[t]


def make_process(options: DiffusionOptions) -> Process:
    """The tables of a discrete process (arXiv 2006.11239, equations 4 and 7)."""
    beta = betas(options)
    alpha_bar = alpha_bars(beta)
    previous = torch.cat([torch.ones(1, dtype=beta.dtype), alpha_bar[:-1]])
    variance = beta * (1 - previous) / (1 - alpha_bar)
    variance[0] = variance[1]
    times = torch.arange(options.num_timesteps)
    return Process(
        beta=beta,
        alpha_bar=alpha_bar,
        posterior_log_variance=variance.log(),
        large_log_variance=torch.cat([variance[:1], beta[1:]]).log(),
        posterior_x0=beta * previous.sqrt() / (1 - alpha_bar),
        posterior_x_t=(1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
        model_times=times * time_scale(options) if options.rescale_timesteps else times,
    )


def q_sample(x0: torch.Tensor, noise: torch.Tensor, level: Coefficients) -> torch.Tensor:
    """x_t = alpha x0 + sigma eps (arXiv 2006.11239, equation 4)."""
    return level.alpha * x0 + level.sigma * noise


def posterior_mean(x0: torch.Tensor, x_t: torch.Tensor, level: Level, following: Level) -> torch.Tensor:
    """The mean of q(x_following | x_t, x0) (arXiv 2006.11239, equation 7).

    By the ratio of their signal-to-noise ratios (arXiv 2207.12598, equation 3): 1 - alpha^2 would lose its digits where
    alpha is almost 1.
    """
    ratio = (following.edm_sigma / level.edm_sigma) ** 2
    return (1 - ratio) * following.alpha * x0 + ratio * following.alpha / level.alpha * x_t


def reverse_log_variance(
    options: DiffusionOptions,
    output: torch.Tensor | None,
    log_beta: torch.Tensor,
    log_posterior_variance: torch.Tensor,
    log_large_variance: torch.Tensor,
) -> torch.Tensor:
    """A reverse step's log variance: a fixed one, or by the second half of the network's channels, `output`.

    With learned_range that is v in about [-1, 1], which interpolates between the two fixed ones
    (arXiv 2102.09672, equation 15); with fixed_mix one number does (arXiv 2207.12598, Algorithm 2).
    """
    if options.variance == "fixed_small":
        return log_posterior_variance
    if options.variance == "fixed_large":
        return log_large_variance
    if options.variance == "fixed_mix":
        return options.variance_mix * log_beta + (1 - options.variance_mix) * log_posterior_variance
    assert output is not None, "a learned variance is an output of the network"
    if options.variance == "learned":
        return output
    fraction = (output + 1) / 2
    return fraction * log_beta + (1 - fraction) * log_posterior_variance


def normal_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL(N1 || N2) of diagonal Gaussians, elementwise, in nats.

    Summed in the released code's order: where the variances are equal, rounding is most of what is left.
    """
    ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    return 0.5 * (-1 + log_variance2 - log_variance1 + ratio + distance)
