"""Samplers with networks of a discrete process, on a Gaussian target whose probability flow is known.

Their orders are measured in test_convergence.py, their samples compared with a mixture's in test_mixture.py.
"""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from unit.diffusion.walks import noise_of

from dist_diffusion.diffusion import samplers, solvers
from dist_diffusion.diffusion.denoiser import Prediction, clipped, from_eps, model_denoiser
from dist_diffusion.diffusion.gaussians import posterior_mean
from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, target
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.spacing import churned_levels
from dist_diffusion.diffusion.timeline import timeline

MEAN, STD = 0.3, 0.5
OPTIONS = DiffusionOptions(variance="fixed_small")
LEVELS = {int(level.model_time): level for level in sampling_levels(OPTIONS, "1000")[:-1]}


def gaussian_eps(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """E[eps | x_t] for x0 ~ N(MEAN, STD^2)."""
    level = LEVELS[int(time[0])]
    variance = (level.alpha * STD) ** 2 + level.sigma**2
    return level.sigma / variance * (x - level.alpha * MEAN)


DENOISER = model_denoiser(gaussian_eps, OPTIONS)


def test_ddim_maps_noise_to_the_gaussian_target_exactly() -> None:
    """The probability flow of a Gaussian is linear: x_0 = MEAN + STD z, up to the discretisation."""
    noise = noise_of(0, (1, 1, 1, 64))
    z = noise()
    levels = sampling_levels(OPTIONS, "1000")
    x = samplers.ddim(DENOISER, levels, z, noise, None)
    start = levels[0]
    scale = math.sqrt((start.alpha * STD) ** 2 + start.sigma**2)
    torch.testing.assert_close(x, MEAN + STD * (z - start.alpha * MEAN) / scale, atol=8e-3, rtol=0)


def test_decoding_what_ddim_encoded_returns_the_image() -> None:
    image = MEAN + STD * noise_of(3, (1, 1, 1, 64))()
    levels = sampling_levels(OPTIONS, "1000")
    latent = samplers.ddim_encode(DENOISER, levels, image, None)
    assert abs(latent.std() - 1) < 0.2 and (latent - image).abs().max() > 0.5
    again = samplers.ddim(DENOISER, levels, latent, noise_of(0, image.shape), None)
    torch.testing.assert_close(again, image, atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_sde"])
def test_stochastic_samplers_have_the_targets_moments(sampler: str) -> None:
    noise, levels = noise_of(1, (1, 1, 1, 8000)), sampling_levels(OPTIONS, "1000")
    if sampler == "ddpm":
        x = samplers.ddpm(DENOISER, levels, noise(), noise, None)
    elif sampler == "ddim":
        x = samplers.ddim(DENOISER, levels, noise(), noise, None, eta=1.0)
    else:
        x = solvers.dpmpp_sde(DENOISER, levels, noise(), noise, None)
    assert abs(x.mean() - MEAN) < 0.02 and abs(x.std() - STD) < 0.02


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    """At eta = 1 a DDIM step is the DDPM step with the posterior's variance (arXiv 2010.02502, section 4.1)."""
    levels = sampling_levels(OPTIONS, "50")
    first, second = noise_of(2, (4, 1, 2, 2)), noise_of(2, (4, 1, 2, 2))
    # The last step differs: DDIM's has no noise because its sigma is 0, DDPM's because it is the last.
    a = samplers.ddpm(DENOISER, levels, first(), first, None)
    b = samplers.ddim(DENOISER, levels, second(), second, None, eta=1.0)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_euler_without_churn_is_ddim() -> None:
    """But for the rounding of the released DDIM's coefficients."""
    levels, z = sampling_levels(OPTIONS, "20"), noise_of(4, (4, 1, 2, 2))()
    a = samplers.ddim(DENOISER, levels, z, noise_of(0, z.shape), None)
    b = solvers.euler(DENOISER, levels, z, noise_of(0, z.shape), None, levels[:-1])
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_churn_adds_what_noise_is_missing_at_the_raised_level() -> None:
    """x / alpha has sigma^2 more variance, S_noise^2 times; the same level draws nothing."""
    levels = sampling_levels(OPTIONS, "20")
    raised = churned_levels(levels, SamplerOptions("euler", churn=4), timeline(OPTIONS))
    noise = noise_of(5, (1, 1, 1, 50_000))
    x = noise()
    for std in (1.0, 0.5):
        found = solvers.raise_noise(x, levels[9], raised[9], noise, std)
        added = found / raised[9].alpha - x / levels[9].alpha
        expected = std * math.sqrt(1.2**2 - 1) * levels[9].edm_sigma
        assert added.std().item() == pytest.approx(expected, rel=0.02)
        assert torch.corrcoef(torch.stack([added.flatten(), x.flatten()]))[0, 1].abs() < 0.02
    assert solvers.raise_noise(x, levels[9], levels[9], noise, 1.0) is x


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("solver", [solvers.dpmpp_2m, solvers.dpmpp_sde, solvers.unipc])
def test_multistep_solvers_of_few_steps_end_with_the_image_that_was_predicted(solver, count: int) -> None:
    """The step to the clean level takes the last prediction alone, at first order."""
    levels, predicted = sampling_levels(OPTIONS, str(count)), []

    def recorded(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        found = DENOISER(x_t, level, labels)
        predicted.append(found.x0)
        return found

    noise = noise_of(6, (4, 1, 2, 2))
    x = solver(recorded, levels, noise(), noise, None)
    assert len(predicted) == count
    torch.testing.assert_close(x, predicted[-1])


@pytest.mark.parametrize("end", [10.0, 20.0, 40.0, 60.0])
def test_the_last_ancestral_step_keeps_the_image_however_clean_its_level(end: float) -> None:
    """1 - alpha^2 of a level whose alpha rounds to 1 is 0, and the image would be lost."""
    options = DiffusionOptions(schedule="log_snr", log_snr_min=-end, log_snr_max=end)
    levels = sampling_levels(options, "10")
    x0, eps = torch.tensor([0.4, -0.7], dtype=torch.float64), torch.tensor([1.0, -0.2], dtype=torch.float64)
    for level, following in pairwise(levels):
        mean = posterior_mean(x0, level.alpha * x0 + level.sigma * eps, level, following)
        share = (following.edm_sigma / level.edm_sigma) ** 2
        torch.testing.assert_close(mean, following.alpha * (x0 + share * level.edm_sigma * eps), atol=1e-9, rtol=1e-9)
    assert levels[-1] == CLEAN
    torch.testing.assert_close(mean, x0)


def labelled_model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    shift = torch.zeros(len(x)) if labels is None else labels.float()
    eps = 0.5 * x + shift.view(-1, 1, 1, 1)
    return torch.cat([eps, torch.tanh(eps)], dim=1)


LEARNED = DiffusionOptions()
LEVEL = sampling_levels(LEARNED, "10")[4]


def test_clipping_keeps_x_t_consistent() -> None:
    denoiser, x = clipped(model_denoiser(labelled_model, LEARNED)), 3 * torch.randn(2, 3, 4, 4)
    found = denoiser(x, LEVEL, torch.tensor([0, 1]))
    assert found.x0.abs().max() <= 1
    torch.testing.assert_close(LEVEL.alpha * found.x0 + LEVEL.sigma * found.eps, x)


def test_a_v_network_is_the_same_denoiser_as_its_eps_twin() -> None:
    """v = alpha eps - sigma x0 says the same as eps about x_t."""

    def v_model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        eps, rest = labelled_model(x, time, labels).chunk(2, dim=1)
        x0 = from_eps(x, LEVEL, eps, None).x0
        return torch.cat([target(options, x0, eps, Coefficients(LEVEL.alpha, LEVEL.sigma)), rest], dim=1)

    x, labels, options = torch.randn(2, 3, 4, 4), torch.tensor([0, 1]), dataclasses.replace(LEARNED, prediction="v")
    ours = model_denoiser(v_model, options)(x, LEVEL, labels)
    twin = model_denoiser(labelled_model, LEARNED)(x, LEVEL, labels)
    torch.testing.assert_close(ours[:3], twin[:3], atol=1e-5, rtol=1e-5)
