"""From a uniform draw to a timestep."""

import torch


def uniform_timesteps(u: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """t = floor(u T): int64 in 0..T-1, for u in [0, 1) (float64, (N,))."""
    return (u * num_timesteps).long()
