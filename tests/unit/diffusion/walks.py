"""Every sampler by its name, called alike; and the noise that it is given."""

from collections.abc import Callable, Sequence

import torch

from dist_diffusion.diffusion import samplers, solvers
from dist_diffusion.diffusion.denoiser import Denoiser
from dist_diffusion.diffusion.levels import Level

Walk = Callable[[Denoiser, Sequence[Level], torch.Tensor, samplers.Noise, torch.Tensor | None], torch.Tensor]

DETERMINISTIC: dict[str, Walk] = {
    "ddim": samplers.ddim,
    "euler": lambda denoiser, levels, x, noise, labels: solvers.euler(denoiser, levels, x, noise, labels, levels[:-1]),
    "heun": lambda denoiser, levels, x, noise, labels: solvers.heun(denoiser, levels, x, noise, labels, levels[:-1]),
    "dpmpp_2m": solvers.dpmpp_2m,
    "unipc": solvers.unipc,
}
STOCHASTIC: dict[str, Walk] = {
    "ddpm": samplers.ddpm,
    "ddim_eta_1": lambda denoiser, levels, x, noise, labels: samplers.ddim(denoiser, levels, x, noise, labels, eta=1.0),
    "dpmpp_sde": solvers.dpmpp_sde,
}


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic sampler drew noise")


def noise_of(seed: int, shape: tuple[int, ...]) -> samplers.Noise:
    """Standard normal noise in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float64)
