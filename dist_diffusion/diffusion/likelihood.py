"""The discretised Gaussian likelihood of 8-bit images."""

import math

import torch


def approximate_normal_cdf(z: torch.Tensor) -> torch.Tensor:
    """The tanh approximation of the standard normal's CDF that the released models were trained with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log p(x) in nats for x in [-1, 1] on the 256 grey levels (arXiv 2006.11239, equation 13), elementwise."""
    centered, inverse_scale = x - mean, torch.exp(-log_scale)
    upper = approximate_normal_cdf(inverse_scale * (centered + 1 / 255))
    lower = approximate_normal_cdf(inverse_scale * (centered - 1 / 255))
    log_upper = upper.clamp(min=1e-12).log()
    log_above = (1 - lower).clamp(min=1e-12).log()
    log_between = (upper - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, log_upper, torch.where(x > 0.999, log_above, log_between))
