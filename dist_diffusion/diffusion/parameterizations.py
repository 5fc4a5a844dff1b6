"""What a network predicts, and how that is noise or an image again, at one noise level x_t = alpha x0 + sigma eps.

`alpha` and `sigma` are floats, or tensors that broadcast over the images.
"""

from typing import TypeVar

import torch

Scale = TypeVar("Scale", float, torch.Tensor)


def eps_from_v(x_t: torch.Tensor, v: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """eps = sigma x_t + alpha v, for alpha^2 + sigma^2 = 1."""
    return sigma * x_t + alpha * v


def velocity(x0: torch.Tensor, eps: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """v = alpha eps - sigma x0 (arXiv 2202.00512, section 4), the target of v-prediction."""
    return alpha * eps - sigma * x0
