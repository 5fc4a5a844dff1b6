"""From a uniform draw to a timestep."""

import base64
from dataclasses import dataclass

import numpy as np
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
    """The last losses of every timestep (arXiv 2102.09672, section 3.3), on the CPU."""

    losses: torch.Tensor
    """Float32 (T, WARM): a ring for each timestep."""
    counts: torch.Tensor
    """Int64 (T,): losses ever seen."""

    @staticmethod
    def empty(num_timesteps: int) -> "LossHistory":
        """Nothing seen yet."""
        return LossHistory(torch.zeros(num_timesteps, WARM), torch.zeros(num_timesteps, dtype=torch.int64))

    def to_json(self) -> dict[str, str]:
        """As JSON: the arrays' bytes in base64, exact."""
        arrays = {"losses": self.losses.numpy().astype("<f4"), "counts": self.counts.numpy().astype("<i8")}
        return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}

    @staticmethod
    def from_json(content: dict[str, str]) -> "LossHistory":
        """What `to_json` wrote."""
        losses = np.frombuffer(base64.b64decode(content["losses"]), "<f4").reshape(-1, WARM)
        counts = np.frombuffer(base64.b64decode(content["counts"]), "<i8")
        return LossHistory(torch.from_numpy(losses.copy()), torch.from_numpy(counts.copy()))

    def probabilities(self) -> torch.Tensor:
        """p_t, float64 (T,), proportional to the root of the mean squared loss; uniform until every ring is full."""
        num = len(self.counts)
        uniform = torch.full((num,), 1 / num, dtype=torch.float64)
        weights = (self.losses.double() ** 2).mean(dim=1).sqrt()
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
        t, losses = t[order], losses[order].float()
        seen = torch.bincount(t, minlength=len(self.counts))
        place = torch.arange(len(t)) - (seen.cumsum(0) - seen)[t]
        kept = place >= seen[t] - WARM
        slots = (self.counts[t] + place) % WARM
        rings = self.losses.clone()
        rings[t[kept], slots[kept]] = losses[kept]
        return LossHistory(rings, self.counts + seen)
