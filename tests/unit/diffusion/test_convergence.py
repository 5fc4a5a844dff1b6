"""Every sampler's order of convergence, measured between two noise levels on targets with exact denoisers."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from unit.diffusion.mixture import FLAT
from unit.diffusion.walks import DETERMINISTIC, STOCHASTIC, Walk, no_noise, noise_of

from dist_diffusion.diffusion import solvers
from dist_diffusion.diffusion.denoiser import Denoiser, Prediction, from_eps
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions, Spacing
from dist_diffusion.diffusion.samplers import Noise
from dist_diffusion.diffusion.spacing import churned_levels, sampler_levels
from dist_diffusion.diffusion.timeline import timeline

LOW, HIGH = 0.1, 10.0
"""Paths go from sigma / alpha = HIGH to LOW, not to 0: in any solver the step to the clean level is of first order."""
BETWEEN = DiffusionOptions(schedule="log_snr", log_snr_min=-2 * math.log(HIGH), log_snr_max=-2 * math.log(LOW))
SPACINGS = ("karras", "log_snr", "even")
COUNTS = (40, 80, 160, 320)


def path(spacing: Spacing, num_steps: int) -> list[Level]:
    *levels, clean = sampler_levels(BETWEEN, SamplerOptions(steps=str(num_steps + 1), spacing=spacing))
    assert not clean.sigma and [levels[0].edm_sigma, levels[-1].edm_sigma] == pytest.approx([HIGH, LOW])
    return levels


def order(errors: Sequence[float]) -> float:
    """The exponent of the step's length, fitted over COUNTS."""
    return -float(np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


X_T = noise_of(0, (64, *FLAT.shape))()
LABELS = torch.arange(64) % (FLAT.num_classes + 1)


@pytest.fixture(scope="module")
def exact_end() -> torch.Tensor:
    """The probability flow d(x / alpha) / ds = eps of the mixture from X_T, by classical Runge-Kutta steps in log s."""
    denoiser, times, num = FLAT.denoiser(), timeline(BETWEEN), 600
    h = math.log(LOW / HIGH) / num

    def slope(log_sigma: float, x: torch.Tensor) -> torch.Tensor:
        level = times.level(math.exp(log_sigma))
        return math.exp(log_sigma) * denoiser(level.alpha * x, level, LABELS).eps

    x = X_T / times.level(HIGH).alpha
    for i in range(num):
        at = math.log(HIGH) + i * h
        k1 = slope(at, x)
        k2 = slope(at + h / 2, x + h / 2 * k1)
        k3 = slope(at + h / 2, x + h / 2 * k2)
        k4 = slope(at + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return times.level(LOW).alpha * x


ORDERS = {"ddim": (0.95, 1.1), "euler": (0.95, 1.1), "heun": (1.9, 2.15), "dpmpp_2m": (1.9, 2.25), "unipc": (2.8, 3.2)}
"""UniPC's corrector makes an order of 3 of its predictor's 2."""


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence_to_the_probability_flow(name: str, spacing: Spacing, exact_end: torch.Tensor) -> None:
    ends = [DETERMINISTIC[name](FLAT.denoiser(), path(spacing, num), X_T, no_noise, LABELS) for num in COUNTS]
    errors = [(end - exact_end).pow(2).mean().sqrt().item() for end in ends]
    low, high = ORDERS[name]
    assert low < order(errors) < high, errors
    assert errors[-1] < (2e-3 if high < 1.5 else 3e-5)


MEAN, STD = 0.3, 0.5


def variance_of(level: Level) -> float:
    """Of x_t, x0 being N(MEAN, STD^2)."""
    return (level.alpha * STD) ** 2 + level.sigma**2


def gaussian(log_variance: str) -> Denoiser:
    """The exact denoiser of N(MEAN, STD^2), with one of a level's variances of the reverse step."""

    def denoise(x: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        eps = level.sigma / variance_of(level) * (x - level.alpha * MEAN)
        return from_eps(x, level, eps, torch.tensor(getattr(level, log_variance), dtype=torch.float64))

    return denoise


def variance_error(walk: Walk, denoiser: Denoiser, levels: list[Level]) -> float:
    """Relative, of the distribution that a sampler ends with; exact, for here its end is linear in x_T and all noise.

    Row 0 starts one standard deviation from the mean, row i is given a unit of the i-th noise, the last row neither.
    """
    x = torch.full((len(levels) + 1, 1, 1, 1), levels[0].alpha * MEAN, dtype=torch.float64)
    x[0] += math.sqrt(variance_of(levels[0]))
    rows = iter(range(1, len(levels)))

    def noise() -> torch.Tensor:
        unit = torch.zeros_like(x)
        unit[next(rows)] = 1
        return unit

    ends = walk(denoiser, levels, x, noise, None)
    assert ends[-1].item() == pytest.approx(levels[-1].alpha * MEAN)
    return ((ends[:-1] - ends[-1]) ** 2).sum().item() / variance_of(levels[-1]) - 1


def churned(solver: object) -> Walk:
    """Euler or Heun with EDM's churn, which lets a fixed amount of noise in over all steps together."""

    def walk(
        denoiser: Denoiser, levels: Sequence[Level], x: torch.Tensor, noise: Noise, labels: torch.Tensor | None
    ) -> torch.Tensor:
        raised = churned_levels(list(levels), SamplerOptions(churn=4), timeline(DiffusionOptions(schedule="log_snr")))
        assert all(start.edm_sigma > level.edm_sigma for start, level in zip(raised, levels, strict=False))
        return solver(denoiser, levels, x, noise, labels, raised)  # type: ignore[operator, no-any-return]

    return walk


STOCHASTIC_ORDERS: dict[str, tuple[Walk, str, int]] = {
    "ddpm fixed_small": (STOCHASTIC["ddpm"], "log_posterior_variance", 1),
    "ddpm fixed_large": (STOCHASTIC["ddpm"], "log_beta", 1),
    "ddim eta 1": (STOCHASTIC["ddim_eta_1"], "log_beta", 1),
    "dpmpp_sde": (STOCHASTIC["dpmpp_sde"], "log_beta", 2),
    "euler churn": (churned(solvers.euler), "log_beta", 1),
    "heun churn": (churned(solvers.heun), "log_beta", 2),
}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", STOCHASTIC_ORDERS)
def test_order_of_convergence_of_the_variance(name: str, spacing: Spacing) -> None:
    walk, log_variance, expected = STOCHASTIC_ORDERS[name]
    errors = [variance_error(walk, gaussian(log_variance), path(spacing, num)) for num in COUNTS]
    assert expected - 0.1 < order([abs(error) for error in errors]) < expected + 0.15, errors
    assert abs(errors[-1]) < (2e-2 if expected == 1 else 5e-4)


def test_convergence_of_ancestral_sampling_is_from_both_sides() -> None:
    """The posterior's variance is too small for a whole step, the forward step's too large: hence fixed_mix."""
    levels = path("log_snr", 20)
    small, large = (
        variance_error(STOCHASTIC["ddpm"], gaussian(name), levels) for name in ("log_posterior_variance", "log_beta")
    )
    assert small < -0.1 and large > 0.05
