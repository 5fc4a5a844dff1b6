"""Any noise level of a process, between its timesteps too: by sigma / alpha, EDM's sigma (arXiv 2206.00364)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.log_snr import make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import alpha_bars, betas, time_scale


@dataclass(frozen=True)
class Timeline:
    """The range of sigma / alpha that a network was trained on, and what it is told within."""

    sigma_min: float
    sigma_max: float
    model_time: Callable[[float], float]

    def level(self, sigma: float) -> Level:
        """The level at sigma / alpha."""
        alpha = 1 / math.hypot(1, sigma)
        return Level(alpha, sigma * alpha, self.model_time(sigma))


def timeline(options: DiffusionOptions) -> Timeline:
    """Of a discrete process the timesteps are interpolated linearly over the log-SNR; outside of them it is the end."""
    if options.schedule == "log_snr":
        process = make_log_snr_process(options)
        ends = math.tan(process.angle_min), math.tan(process.angle_max)
        return Timeline(*ends, lambda sigma: process.time(math.atan(sigma)))
    bars = alpha_bars(betas(options)).numpy()
    log_sigmas, scale = 0.5 * np.log((1 - bars) / bars), time_scale(options)
    timesteps = np.arange(options.num_timesteps)
    ends = math.exp(log_sigmas[0]), math.exp(log_sigmas[-1])
    return Timeline(*ends, lambda sigma: scale * float(np.interp(math.log(sigma), log_sigmas, timesteps)))
