"""The Gaussians of a discrete diffusion process, for one level (sampling) or a batch of timesteps (training)."""

import math
from dataclasses import dataclass, fields

import torch

from dist_diffusion.diffusion.denoiser import Level
from dist_diffusion.diffusion.schedules import alpha_bars


@dataclass(frozen=True)
class Process:
    """Float64 tables over the timesteps of a process, each (T,)."""

    beta: torch.Tensor
    alpha_bar: torch.Tensor
    posterior_log_variance: torch.Tensor
    """log of beta~; its first entry, log 0, is replaced by its second."""
    posterior_x0: torch.Tensor
    """Coefficient of x0 in the posterior's mean."""
    posterior_x_t: torch.Tensor
    """Coefficient of x_t in the posterior's mean."""

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.beta)

    def to(self, device: torch.device) -> "Process":
        """The tables on a device, so that looking one up copies nothing."""
        return Process(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def make_process(beta: torch.Tensor) -> Process:
    """The tables that follow from the variances beta (arXiv 2006.11239, equations 4 and 7)."""
    alpha_bar = alpha_bars(beta)
    previous = torch.cat([torch.ones(1, dtype=beta.dtype), alpha_bar[:-1]])
    variance = beta * (1 - previous) / (1 - alpha_bar)
    return Process(
        beta=beta,
        alpha_bar=alpha_bar,
        posterior_log_variance=torch.log(torch.cat([variance[1:2], variance[1:]])),
        posterior_x0=beta * previous.sqrt() / (1 - alpha_bar),
        posterior_x_t=(1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
    )


def at(table: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Entries of a table for timesteps t (N,), in float32, broadcastable over `like` (N, ...)."""
    return table[t].float().view(-1, *[1] * (like.ndim - 1))


def signal_and_noise(process: Process, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha = sqrt(alpha_bar) and sigma = sqrt(1 - alpha_bar) at timesteps t, broadcastable over `like`."""
    return at(process.alpha_bar.sqrt(), t, like), at((1 - process.alpha_bar).sqrt(), t, like)


def q_sample(process: Process, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps (arXiv 2006.11239, equation 4)."""
    alpha, sigma = signal_and_noise(process, t, x0)
    return alpha * x0 + sigma * noise


def posterior_mean(x0: torch.Tensor, x_t: torch.Tensor, level: Level, following: Level) -> torch.Tensor:
    """The mean of q(x_following | x_t, x0) (arXiv 2006.11239, equation 7)."""
    ratio = (level.alpha / following.alpha) ** 2
    beta = 1 - ratio
    from_x0 = beta * following.alpha / level.sigma**2
    from_x_t = following.sigma**2 * math.sqrt(ratio) / level.sigma**2
    return from_x0 * x0 + from_x_t * x_t


def normal_kl(
    mean1: torch.Tensor, log_variance1: torch.Tensor, mean2: torch.Tensor, log_variance2: torch.Tensor
) -> torch.Tensor:
    """KL(N1 || N2) of diagonal Gaussians, elementwise, in nats."""
    difference = log_variance1 - log_variance2
    return 0.5 * (difference.exp() - difference - 1 + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))
