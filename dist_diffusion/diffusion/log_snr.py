"""Continuous time by the log signal-to-noise ratio (arXiv 2207.12598, section 2).

There lambda = -2 log tan(a u + b) for u uniform in [0, 1], alpha^2 = sigmoid(lambda) and sigma^2 = sigmoid(-lambda).
With the angle phi = a u + b that is alpha = cos phi and sigma = sin phi.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch

from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, broadcast

MODEL_TIMES = 1000.0
"""What the network is told at pure noise; 0 is a clean image. Our choice: phi over pi / 2, on the scale of the discrete
timesteps that the sinusoidal embedding is made for."""


Angle = TypeVar("Angle", float, torch.Tensor)


@dataclass(frozen=True)
class LogSnrProcess:
    """The process between two log signal-to-noise ratios."""

    log_snr_min: float
    log_snr_max: float

    @property
    def angle_min(self) -> float:
        """b: phi of the largest log-SNR."""
        return math.atan(math.exp(-self.log_snr_max / 2))

    @property
    def angle_max(self) -> float:
        """a + b: phi of the smallest log-SNR."""
        return math.atan(math.exp(-self.log_snr_min / 2))

    def angle(self, u: Angle) -> Angle:
        """phi of u in [0, 1]."""
        return self.angle_min + u * (self.angle_max - self.angle_min)

    def log_normal(self, u: torch.Tensor, mean: float, std: float) -> torch.Tensor:
        """The u whose levels have log(sigma / alpha) normally distributed, of uniform u (N,) in [0, 1) in float64.

        EDM's noise distribution (arXiv 2206.00364, table 1), by its inverse. What falls outside of the process, u = 0
        too, is moved to its end.
        """
        log_sigma = (mean + std * torch.special.ndtri(u)).clamp(-self.log_snr_max / 2, -self.log_snr_min / 2)
        return (log_sigma.exp().atan() - self.angle_min) / (self.angle_max - self.angle_min)

    def time(self, phi: Angle) -> Angle:
        """What the network is told at an angle: bounded, and smooth in the log-SNR."""
        return MODEL_TIMES * phi / (math.pi / 2)

    def levels(self, u: torch.Tensor, like: torch.Tensor) -> tuple[Coefficients, torch.Tensor]:
        """Coefficients that broadcast over `like` (N, ...), and what the network is told (N,), of u (N,) in float64."""
        phi = self.angle(u)
        return Coefficients(broadcast(phi.cos(), like), broadcast(phi.sin(), like)), self.time(phi).float()


def make_log_snr_process(options: DiffusionOptions) -> LogSnrProcess:
    """The process of schedule log_snr."""
    return LogSnrProcess(options.log_snr_min, options.log_snr_max)
