"""Continuous time: the levels of the classifier-free guidance paper."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from dist_diffusion.diffusion.denoiser import level_log_variance
from dist_diffusion.diffusion.gaussians import posterior_mean
from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.log_snr import MODEL_TIMES, make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.errors import ConfigError

OPTIONS = DiffusionOptions(schedule="log_snr", variance="fixed_small")
PROCESS = make_log_snr_process(OPTIONS)
LIKE = torch.zeros(1, 3, 4, 4)


def log_snr(u: float) -> float:
    level, _ = PROCESS.levels(torch.tensor([u], dtype=torch.float64), LIKE)
    return 2 * math.log(level.alpha / level.sigma)  # type: ignore[arg-type]


def log_snr_of(level: Level) -> float:
    return 2 * math.log(level.alpha / level.sigma)


def test_the_log_snr_at_known_places() -> None:
    """Ends, middle and the quarter, at which the published code gives 1.763."""
    for u, expected in [(0.0, 20.0), (0.25, 1.763), (0.5, 0.0), (1.0, -20.0)]:
        assert log_snr(u) == pytest.approx(expected, abs=1e-3)
    other = make_log_snr_process(DiffusionOptions(schedule="log_snr", log_snr_min=-15, log_snr_max=9))
    level, _ = other.levels(torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, 1))
    snr = 2 * (torch.as_tensor(level.alpha) / torch.as_tensor(level.sigma)).log().flatten()
    torch.testing.assert_close(snr, torch.tensor([9.0, -15.0]), atol=1e-3, rtol=0)


def test_levels_keep_the_variance_and_the_network_is_told_a_bounded_time() -> None:
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    level, time = PROCESS.levels(u, torch.zeros(1001, 1, 1, 1))
    alpha, sigma = torch.as_tensor(level.alpha), torch.as_tensor(level.sigma)
    assert alpha.shape == (1001, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.flatten().diff() < 0).all() and (time.diff() > 0).all()
    assert time[0] >= 0 and time[-1] <= MODEL_TIMES


def test_log_normal_levels_are_edms_within_the_process() -> None:
    """log(sigma / alpha) of u is a normal distribution's quantile, cut where the process ends, the one of u = 0 too."""
    ends = {"log_snr_min": -2 * math.log(80), "log_snr_max": -2 * math.log(0.002)}
    process = make_log_snr_process(DiffusionOptions(schedule="log_snr", **ends))
    u = torch.tensor([0.0, 1e-300, 0.15865525393, 0.5, 0.97724986805, 1 - 2.0**-53], dtype=torch.float64)
    level, time = process.levels(process.log_normal(u, -1.2, 1.2), torch.zeros(6, 1))
    found = (torch.as_tensor(level.sigma) / torch.as_tensor(level.alpha)).log().flatten()
    low, high = math.log(0.002), math.log(80)
    torch.testing.assert_close(found, torch.tensor([low, low, -2.4, -1.2, 1.2, high]), atol=1e-5, rtol=0)
    assert time.isfinite().all()
    every = process.log_normal((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000, 0.3, 0.8)
    level, _ = process.levels(every, torch.zeros(4000, 1))
    log_sigma = (torch.as_tensor(level.sigma) / torch.as_tensor(level.alpha)).log()
    assert (log_sigma.mean().item(), log_sigma.std().item()) == pytest.approx((0.3, 0.8), abs=2e-3)


def test_the_samplers_path_is_evenly_spaced_in_u_and_told_alike() -> None:
    levels = sampling_levels(OPTIONS, "5")
    assert levels[-1] == CLEAN and len(levels) == 6
    u = torch.linspace(1, 0, 5, dtype=torch.float64)
    trained, time = PROCESS.levels(u, torch.zeros(5, 1))
    torch.testing.assert_close(
        torch.tensor([level.alpha for level in levels[:-1]]), torch.as_tensor(trained.alpha)[:, 0]
    )
    torch.testing.assert_close(torch.tensor([level.model_time for level in levels[:-1]]), time)
    assert len(sampling_levels(OPTIONS, "1")) == 2


def test_a_step_is_the_papers() -> None:
    """arXiv 2207.12598, equations 3 and 4: means and variances by log-SNR, from lambda to lambda'."""
    *levels, _ = sampling_levels(OPTIONS, "9")
    x0, x_t = torch.tensor([0.3]), torch.tensor([-0.8])
    for level, following in pairwise(levels):
        ratio = math.exp(log_snr_of(level) - log_snr_of(following))
        assert level.log_posterior_variance == pytest.approx(math.log((1 - ratio) * following.sigma**2), abs=1e-6)
        assert level.log_beta == pytest.approx(math.log((1 - ratio) * level.sigma**2), abs=1e-6)
        mean = ratio * following.alpha / level.alpha * x_t + (1 - ratio) * following.alpha * x0
        torch.testing.assert_close(posterior_mean(x0, x_t, level, following), mean, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("end", [10.0, 20.0, 40.0, 60.0])
def test_the_ends_keep_their_digits(end: float) -> None:
    """1 - cos^2 of the cleanest level would lose them, and all of them from a log-SNR of 37 on."""
    options = DiffusionOptions(schedule="log_snr", log_snr_min=-end, log_snr_max=end, variance="fixed_small")
    noisiest, *_, before, cleanest, _ = sampling_levels(options, "50")
    assert log_snr_of(cleanest) == pytest.approx(end, rel=1e-12)
    assert log_snr_of(noisiest) == pytest.approx(-end, rel=1e-4)
    ratio = math.exp(log_snr_of(before) - log_snr_of(cleanest))
    assert before.log_posterior_variance == pytest.approx(math.log1p(-ratio) + 2 * math.log(cleanest.sigma), rel=1e-9)
    assert cleanest.log_beta == pytest.approx(2 * math.log(cleanest.sigma), rel=1e-12)


def test_the_mixed_variance_is_between_the_two_fixed_ones() -> None:
    level = sampling_levels(OPTIONS, "9")[3]
    like = torch.zeros(1)
    for mix in (0.0, 0.3, 1.0):
        options = dataclasses.replace(OPTIONS, variance="fixed_mix", variance_mix=mix)
        expected = (1 - mix) * level.log_posterior_variance + mix * level.log_beta
        assert level_log_variance(options, level, None, like).item() == pytest.approx(expected)


def test_steps_are_a_count_alone() -> None:
    for steps in ("5,5", "ddim5", "0", "-3"):
        with pytest.raises(ConfigError, match="in continuous time"):
            sampling_levels(OPTIONS, steps)
