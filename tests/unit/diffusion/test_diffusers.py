"""Our solvers beside diffusers' schedulers: the same levels, the same guided denoiser, the same noise.

In some spacings a scheduler rounds what its network is told; the denoiser here goes by the noise level alone. Both walk
the scheduler's levels, which are rounded to float32, and ours are compared with them.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler
from unit.diffusion.mixture import IMAGES
from unit.diffusion.walks import DETERMINISTIC, STOCHASTIC, no_noise, noise_of

from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.guidance import guided, linear, null_label_pair
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import path, sampling_levels
from dist_diffusion.diffusion.spacing import sampler_levels

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LINEAR = {"beta_start": 1e-4, "beta_end": 0.02}
DENOISER = guided(null_label_pair(IMAGES.denoiser(), IMAGES.num_classes), linear(2.5))
LABELS = torch.arange(12) % 3
X_T = noise_of(0, (12, *IMAGES.shape))()

SPACINGS: dict[str, dict[str, Any]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "log_snr": {"use_exponential_sigmas": True},
}
BOTH = pytest.mark.parametrize("spacing", SPACINGS)
COUNTS = pytest.mark.parametrize("num", [5, 10, 20])


def levels_of(sigmas: torch.Tensor, spacing: str, num: int) -> list[Level]:
    """A scheduler's path, which is the one that we make, but for its product of betas in float32."""
    *noisy, last = sigmas.tolist()
    assert last == 0 and len(noisy) == num
    ours = SamplerOptions(steps=str(num), spacing=spacing, sigma_min=1e-9, sigma_max=math.inf)  # type: ignore[arg-type]
    expected = [level.edm_sigma for level in sampler_levels(DiffusionOptions(), ours)[:-1]]
    np.testing.assert_allclose(noisy, expected, rtol=1e-3)
    return levels_at(noisy)


def levels_at(sigmas: list[float]) -> list[Level]:
    rising = sigmas[::-1]
    alphas = [1 / math.hypot(1, sigma) for sigma in rising]
    return path(alphas, [sigma * alpha for sigma, alpha in zip(rising, alphas, strict=True)], rising)


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.isfinite(ours).all() and ours.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0, check_dtype=False)


Multistep = DPMSolverMultistepScheduler | UniPCMultistepScheduler


def theirs(scheduler: Multistep, levels: list[Level], noise: samplers.Noise | None = None) -> torch.Tensor:
    """The end of a scheduler's path, which has been set."""
    # Told where it begins: it would look for the first timestep, and rounded ones may be there twice.
    scheduler.set_begin_index(0)
    x = X_T
    for level, timestep in zip(levels[:-1], scheduler.timesteps, strict=True):
        given = {} if noise is None else {"variance_noise": noise()}
        x = scheduler.step(DENOISER(x, level, LABELS).eps, timestep, x, **given).prev_sample
    return x


@BOTH
@COUNTS
def test_dpm_solver_2m_is_diffusers(spacing: str, num: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**LINEAR, **SPACINGS[spacing], algorithm_type="dpmsolver++")
    scheduler.set_timesteps(num)
    levels = levels_of(scheduler.sigmas, spacing, num)
    close(DETERMINISTIC["dpmpp_2m"](DENOISER, levels, X_T, no_noise, LABELS), theirs(scheduler, levels))


@COUNTS
def test_dpm_solver_2m_is_diffusers_on_our_even_path(num: int) -> None:
    """Whose timesteps it can be given."""
    even = sampling_levels(DiffusionOptions(), str(num))
    scheduler = DPMSolverMultistepScheduler(**LINEAR, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=[int(level.model_time) for level in even[:-1]])
    levels = levels_of(scheduler.sigmas, "even", num)
    close(DETERMINISTIC["dpmpp_2m"](DENOISER, levels, X_T, no_noise, LABELS), theirs(scheduler, levels))


@BOTH
@COUNTS
def test_the_stochastic_dpm_solver_is_diffusers(spacing: str, num: int) -> None:
    """Its last step is given noise too, of which it takes none: sigma is 0."""
    scheduler = DPMSolverMultistepScheduler(**LINEAR, **SPACINGS[spacing], algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(num)
    levels = levels_of(scheduler.sigmas, spacing, num)
    ours = STOCHASTIC["dpmpp_sde"](DENOISER, levels, X_T, noise_of(1, X_T.shape), LABELS)
    close(ours, theirs(scheduler, levels, noise_of(1, X_T.shape)))


@BOTH
@COUNTS
def test_unipc_is_diffusers(spacing: str, num: int) -> None:
    scheduler = UniPCMultistepScheduler(**LINEAR, **SPACINGS[spacing], solver_order=2, solver_type="bh2")
    scheduler.set_timesteps(num)
    levels = levels_of(scheduler.sigmas, spacing, num)
    close(DETERMINISTIC["unipc"](DENOISER, levels, X_T, no_noise, LABELS), theirs(scheduler, levels))


@BOTH
@COUNTS
def test_heun_is_diffusers(spacing: str, num: int) -> None:
    scheduler = HeunDiscreteScheduler(**LINEAR, **SPACINGS[spacing])
    scheduler.set_timesteps(num)
    # Each level but the ends is there twice: for the step that ends at it, and for the one that begins.
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    levels = levels_of(sigmas, spacing, num)
    scheduler.set_begin_index(0)
    # It walks x_t / alpha.
    x = X_T / levels[0].alpha
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep)
        level = levels_at([float(scheduler.sigmas[scheduler.step_index])])[0]
        x = scheduler.step(DENOISER(scaled, level, LABELS).eps, timestep, x).prev_sample
    close(DETERMINISTIC["heun"](DENOISER, levels, X_T, no_noise, LABELS), x)


@COUNTS
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_is_diffusers(num: int, eta: float) -> None:
    scheduler = DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(num)
    bars = scheduler.alphas_cumprod[scheduler.timesteps].double()
    levels = levels_of(torch.cat([((1 - bars) / bars).sqrt(), torch.zeros(1)]), "trailing", num)
    noise, x = noise_of(2, X_T.shape), X_T
    for level, timestep in zip(levels[:-1], scheduler.timesteps, strict=True):
        eps = DENOISER(x, level, LABELS).eps
        x = scheduler.step(eps, int(timestep), x, eta=eta, variance_noise=noise() if eta else None).prev_sample
    close(samplers.ddim(DENOISER, levels, X_T, noise_of(2, X_T.shape), LABELS, eta), x)
