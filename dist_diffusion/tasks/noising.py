"""Noising a batch at the levels that its draws name, in discrete or continuous time."""

from dataclasses import dataclass

import torch

from dist_diffusion.diffusion.gaussians import Process, make_process, q_sample
from dist_diffusion.diffusion.log_snr import LogSnrProcess, make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients
from dist_diffusion.diffusion.timesteps import LossHistory, uniform_timesteps
from dist_diffusion.tasks.task import NUM_QUARTILES


@dataclass(frozen=True)
class Noised:
    """x_t, its level, and how it was drawn."""

    x_t: torch.Tensor
    level: Coefficients
    time: torch.Tensor
    """What the network is told, (N,)."""
    t: torch.Tensor | None
    """Timesteps, (N,); None in continuous time."""
    quartile: torch.Tensor
    """Of the noise level, int64 (N,): floor(4 t / T), in continuous time floor(4 u); 0 is the cleanest."""
    weight: torch.Tensor | float
    """Of each sample's loss, so that the way t is drawn changes no expectation."""


AnyProcess = Process | LogSnrProcess


def build_process(options: DiffusionOptions, device: torch.device) -> AnyProcess:
    """The process of the options, its tables on `device`."""
    if options.schedule == "log_snr":
        return make_log_snr_process(options)
    return make_process(options).to(device)


def noised(
    process: AnyProcess, x0: torch.Tensor, noise: torch.Tensor, u: torch.Tensor, history: LossHistory | None = None
) -> Noised:
    """x0 noised at the level that u (N,) in [0, 1) stands for: by the history's distribution, or else uniformly."""
    if isinstance(process, LogSnrProcess):
        level, time = process.levels(u, x0)
        quartile = uniform_timesteps(u, NUM_QUARTILES)
        return Noised(q_sample(x0, noise, level), level, time, None, quartile, 1.0)
    weight: torch.Tensor | float = 1.0
    if history is None:
        t = uniform_timesteps(u, process.num_timesteps)
    else:
        # On the CPU: a cumulative sum on a GPU has no deterministic kernel, and t decides what is learned.
        t, weight = (drawn.to(x0.device) for drawn in history.draw(u.cpu()))
    level, time = process.levels(t, x0)
    return Noised(q_sample(x0, noise, level), level, time, t, NUM_QUARTILES * t // process.num_timesteps, weight)
