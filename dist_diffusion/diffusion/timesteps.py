"""From a uniform draw to a timestep."""

from dataclasses import dataclass
from typing import Any

import torch

WARM = 10
"""Losses remembered of each timestep; loss-aware sampling begins once every timestep has so many."""
UNIFORM_SHARE = 0.001
"""Probability that is spread evenly, so that every timestep keeps being drawn."""


def uniform_timesteps(u: torch.Tensor, num_timesteps: int) -> torch.Tensor:
    """t = floor(u T): int64 in 0..T-1, for u in [0, 1) (float64, (N,))."""
    return (u * num_timesteps).long().clamp(max=num_timesteps - 1)


@dataclass(frozen=True)
class LossHistory:
    """The last losses of every timestep (arXiv 2102.09672, section 3.3)."""

    losses: torch.Tensor
    """Float64 (T, WARM): a ring for each timestep."""
    counts: torch.Tensor
    """Int64 (T,): losses ever seen."""

    @staticmethod
    def empty(num_timesteps: int, device: torch.device | str = "cpu") -> "LossHistory":
        """Nothing seen yet."""
        losses = torch.zeros(num_timesteps, WARM, dtype=torch.float64, device=device)
        return LossHistory(losses, torch.zeros(num_timesteps, dtype=torch.int64, device=device))

    def to_json(self) -> dict[str, Any]:
        """As plain values, exact."""
        return {"losses": self.losses.tolist(), "counts": self.counts.tolist()}

    @staticmethod
    def from_json(content: dict[str, Any], device: torch.device | str) -> "LossHistory":
        """What `to_json` wrote."""
        losses = torch.tensor(content["losses"], dtype=torch.float64, device=device)
        return LossHistory(losses, torch.tensor(content["counts"], device=device))

    def probabilities(self) -> torch.Tensor:
        """p_t, float64 (T,), proportional to the root of the mean squared loss; uniform until every ring is full."""
        num = len(self.counts)
        uniform = torch.full((num,), 1 / num, dtype=torch.float64, device=self.losses.device)
        weights = (self.losses**2).mean(dim=1).sqrt()
        aware = (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE / num
        return torch.where((self.counts >= WARM).all(), aware, uniform)

    def draw(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """t = CDF^-1(u), int64 (N,), and the weights 1 / (T p_t), float32 (N,), that keep the loss unbiased."""
        p = self.probabilities()
        t = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=len(p) - 1)
        return t, (1 / (len(p) * p[t])).float()

    def updated(self, t: torch.Tensor, losses: torch.Tensor) -> "LossHistory":
        """With losses (N,) of timesteps t (N,) seen in this order; of more than WARM for one t the last stay."""
        order = torch.argsort(t, stable=True)
        t, losses = t[order], losses[order].double()
        seen = torch.bincount(t, minlength=len(self.counts))
        place = torch.arange(len(t), device=t.device) - (seen.cumsum(0) - seen)[t]
        kept = place >= seen[t] - WARM
        slots = (self.counts[t] + place) % WARM
        rings = self.losses.clone()
        rings[t[kept], slots[kept]] = losses[kept]
        return LossHistory(rings, self.counts + seen)
