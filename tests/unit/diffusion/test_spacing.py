"""Which noise levels a sampler walks, and what the network is told between timesteps."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.log_snr import make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.spacing import churned_levels, geometric, karras, sampler_levels, trailing_levels
from dist_diffusion.diffusion.timeline import timeline
from dist_diffusion.errors import ConfigError

LINEAR, COSINE = DiffusionOptions(), DiffusionOptions(schedule="cosine")
CONTINUOUS = DiffusionOptions(schedule="log_snr")
PROCESSES = pytest.mark.parametrize("options", [LINEAR, COSINE, CONTINUOUS], ids=["linear", "cosine", "log_snr"])


def times_of(levels: list[Level]) -> list[float]:
    assert levels[-1] == CLEAN
    return [level.model_time for level in levels[:-1]]


def sigmas_of(levels: list[Level]) -> list[float]:
    return [level.edm_sigma for level in levels[:-1]]


@PROCESSES
def test_even_is_the_processs_own_path(options: DiffusionOptions) -> None:
    assert sampler_levels(options, SamplerOptions(steps="20")) == sampling_levels(options, "20")
    if options.schedule != "log_snr":
        ddim = sampler_levels(options, SamplerOptions(steps="ddim20"))
        assert times_of(ddim) == list(range(950, -1, -50))


def test_trailing_counts_back_from_the_last_timestep() -> None:
    """arXiv 2305.08891, table 2: 999 is there, 0 is not."""
    assert times_of(trailing_levels(LINEAR, 10)) == list(range(999, 98, -100))
    assert times_of(trailing_levels(LINEAR, 1)) == [999]
    assert times_of(trailing_levels(LINEAR, 1000)) == list(range(999, -1, -1))
    rescaled = DiffusionOptions(num_timesteps=250, rescale_timesteps=True)
    assert times_of(trailing_levels(rescaled, 5)) == [996, 796, 596, 396, 196]
    for num in (7, 30, 333, 999):
        kept = times_of(trailing_levels(LINEAR, num))
        assert len(set(kept)) == num and kept == (np.arange(1000, 0, -1000 / num).round() - 1).tolist()[:num]


def test_trailing_in_continuous_time_begins_at_the_noisiest_level_and_stops_a_step_before_the_cleanest() -> None:
    process = make_log_snr_process(CONTINUOUS)
    levels = sampler_levels(CONTINUOUS, SamplerOptions(steps="4", spacing="trailing"))
    assert times_of(levels) == pytest.approx([process.time(process.angle(u)) for u in (1, 0.75, 0.5, 0.25)])


def test_the_karras_values_are_edms() -> None:
    """18 steps from 80 to 0.002 with rho 7: the first ones of arXiv 2206.00364's sampler, by hand."""
    sigmas = sigmas_of(sampler_levels(CONTINUOUS, SamplerOptions(steps="18", spacing="karras")))
    assert sigmas[0] == pytest.approx(80) and sigmas[-1] == pytest.approx(0.002)
    assert sigmas[1] == pytest.approx((80 ** (1 / 7) + (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17) ** 7)
    # Printed by that sampler, in float32.
    assert sigmas[1:4] == pytest.approx([57.586, 40.786, 28.375], rel=1e-4)
    roots = np.diff([sigma ** (1 / 7) for sigma in sigmas])
    assert roots == pytest.approx(np.full(17, roots[0]))
    assert karras(0.1, 10, 5, 1.0) == pytest.approx(np.linspace(0.1, 10, 5))
    assert karras(0.1, 10, 1, 7.0) == [pytest.approx(10)]


@PROCESSES
def test_log_snr_spacing_is_even_in_log_snr(options: DiffusionOptions) -> None:
    sampler = SamplerOptions(steps="12", spacing="log_snr", sigma_min=0.05, sigma_max=20)
    levels = sampler_levels(options, sampler)[:-1]
    log_snr = np.array([2 * math.log(level.alpha / level.sigma) for level in levels])
    assert log_snr[[0, -1]] == pytest.approx([-2 * math.log(20), -2 * math.log(0.05)])
    assert np.diff(log_snr) == pytest.approx(np.full(11, np.diff(log_snr)[0]))
    assert geometric(0.1, 10, 1) == [10]


FAST = ("heun", "dpmpp_2m", "dpmpp_sde", "unipc")
SUITS = dict.fromkeys(("ddpm", "ddim", "euler"), "even") | dict.fromkeys(FAST, "log_snr")


@pytest.mark.parametrize(("name", "suits"), SUITS.items())
def test_without_a_spacing_it_suits_the_sampler(name: str, suits: str) -> None:
    given, found = (sampler_levels(LINEAR, SamplerOptions(name, "9", spacing)) for spacing in (suits, None))  # type: ignore[arg-type]
    assert found == given


@PROCESSES
@pytest.mark.parametrize("spacing", ["trailing", "log_snr", "karras"])
def test_levels_keep_the_variance_and_have_their_steps_variances(options: DiffusionOptions, spacing: str) -> None:
    """Those of arXiv 2207.12598: (1 - e^(lambda - lambda')) sigma'^2 and sigma^2."""
    levels = sampler_levels(options, SamplerOptions(steps="15", spacing=spacing))  # type: ignore[arg-type]
    assert len(levels) == 16 and levels[-1] == CLEAN
    for level, following in pairwise(levels[:-1]):
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
        assert level.edm_sigma > following.edm_sigma and level.model_time > following.model_time
        share = 1 - (following.edm_sigma / level.edm_sigma) ** 2
        assert level.log_posterior_variance == pytest.approx(math.log(share * following.sigma**2), abs=1e-6)
        assert level.log_beta == pytest.approx(math.log(share * level.sigma**2), abs=1e-6)


@pytest.mark.parametrize("options", [LINEAR, COSINE, DiffusionOptions(num_timesteps=250, rescale_timesteps=True)])
def test_the_network_is_told_a_timestep_at_its_own_level(options: DiffusionOptions) -> None:
    times = timeline(options)
    *levels, _ = sampling_levels(options, str(options.num_timesteps))
    for level in levels:
        found = times.level(level.edm_sigma)
        assert found.model_time == pytest.approx(level.model_time, abs=1e-6)
        assert (found.alpha, found.sigma) == pytest.approx((level.alpha, level.sigma), rel=1e-9)
    assert (times.sigma_min, times.sigma_max) == pytest.approx((levels[-1].edm_sigma, levels[0].edm_sigma))


@PROCESSES
def test_between_timesteps_the_time_rises_with_the_noise(options: DiffusionOptions) -> None:
    """Linearly in the log-SNR, of a discrete process; and it ends where the process ends."""
    times = timeline(options)
    sigmas = np.geomspace(times.sigma_min, times.sigma_max, 5000)
    told = [times.model_time(sigma) for sigma in sigmas]
    assert all(np.diff(told) > 0)
    if options.schedule == "log_snr":
        process = make_log_snr_process(options)
        assert told == pytest.approx([process.time(math.atan(sigma)) for sigma in sigmas])
        return
    assert [told[0], told[-1]] == pytest.approx([0, 999], abs=1e-6)
    *_, second, first, _ = sampling_levels(options, "1000")
    middle = times.model_time(math.sqrt(first.edm_sigma * second.edm_sigma))
    assert middle == pytest.approx(0.5)


def test_a_path_by_sigma_is_the_path_by_timesteps_where_they_meet() -> None:
    """Two timesteps, from either side: the sampler cannot tell."""
    by_time = sampling_levels(LINEAR, "2")
    high, low = sigmas_of(by_time)
    for spacing in ("karras", "log_snr"):
        sampler = SamplerOptions(steps="2", spacing=spacing, sigma_min=low, sigma_max=high)  # type: ignore[arg-type]
        for ours, theirs in zip(sampler_levels(LINEAR, sampler), by_time, strict=True):
            for field in dataclasses.fields(Level):
                found = getattr(ours, field.name)
                assert found == pytest.approx(getattr(theirs, field.name), rel=1e-6, abs=1e-6)


@PROCESSES
def test_sigma_min_and_max_beyond_the_model_are_the_models(options: DiffusionOptions) -> None:
    times = timeline(options)
    sampler = SamplerOptions(steps="9", spacing="karras", sigma_min=1e-9, sigma_max=math.inf)
    sigmas = sigmas_of(sampler_levels(options, sampler))
    assert [sigmas[-1], sigmas[0]] == pytest.approx([times.sigma_min, times.sigma_max])
    within = SamplerOptions(steps="9", spacing="karras", sigma_min=0.5, sigma_max=3)
    sigmas = sigmas_of(sampler_levels(options, within))
    assert [sigmas[-1], sigmas[0]] == pytest.approx([0.5, 3])


def test_a_range_outside_of_the_model_is_refused() -> None:
    for low, high in ((300.0, 400.0), (1e-5, 1e-4)):
        with pytest.raises(ConfigError, match=r"sampler\.sigma_min=.*sampler\.sigma_max=.*trained from 0\.01 to 157"):
            sampler_levels(LINEAR, SamplerOptions(steps="9", spacing="log_snr", sigma_min=low, sigma_max=high))


@pytest.mark.parametrize("spacing", ["trailing", "log_snr", "karras"])
@pytest.mark.parametrize("steps", ["0", "-3", "ddim10", "10,10", "ten", "2.5"])
def test_other_spacings_take_a_count(spacing: str, steps: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampler\.steps={steps}: with sampler\.spacing={spacing} expected a count"):
        sampler_levels(LINEAR, SamplerOptions(steps=steps, spacing=spacing))  # type: ignore[arg-type]


def test_trailing_has_no_more_steps_than_timesteps() -> None:
    with pytest.raises(ConfigError, match=r"sampler\.steps=1001: there are 1000 timesteps"):
        sampler_levels(LINEAR, SamplerOptions(steps="1001", spacing="trailing"))


def test_a_model_of_whole_steps_means_is_asked_at_timesteps_alone() -> None:
    options = DiffusionOptions(prediction="mean")
    for setting in ({"spacing": "karras"}, {"spacing": "log_snr"}, {"name": "euler", "churn": 5.0}):
        with pytest.raises(ConfigError, match=r"diffusion\.prediction=mean is of whole ones: use spacing even"):
            sampler_levels(options, SamplerOptions(steps="9", **setting))  # type: ignore[arg-type]
    for spacing in ("even", "trailing"):
        levels = sampler_levels(options, SamplerOptions("euler", "9", spacing))  # type: ignore[arg-type]
        assert all(time == round(time) for time in times_of(levels))


@PROCESSES
def test_churn_raises_the_noise_by_edms_factor(options: DiffusionOptions) -> None:
    """gamma = min(S_churn / N, sqrt(2) - 1) within the range, 0 outside, never beyond the process."""
    times = timeline(options)
    path = SamplerOptions("heun", "20", "karras", churn_min=0.5, churn_max=30)
    levels = sampler_levels(options, path)
    for churn, gamma in ((0.0, 0.0), (2.0, 0.1), (100.0, math.sqrt(2) - 1)):
        raised = churned_levels(levels, dataclasses.replace(path, churn=churn), times)
        assert len(raised) == 20
        for level, start in zip(levels[:-1], raised, strict=True):
            if not churn or not 0.5 <= level.edm_sigma <= 30:
                assert start is level
                continue
            assert start.edm_sigma == pytest.approx(level.edm_sigma * (1 + gamma))
            assert start.model_time == pytest.approx(times.model_time(start.edm_sigma))


def test_churn_stays_within_the_process() -> None:
    times = timeline(LINEAR)
    levels = sampling_levels(LINEAR, "20")
    raised = churned_levels(levels, SamplerOptions("heun", churn=100), times)
    assert raised[0] is levels[0]
    assert raised[1].edm_sigma == pytest.approx(min(levels[1].edm_sigma * math.sqrt(2), times.sigma_max))
    assert max(start.edm_sigma for start in raised) <= times.sigma_max * (1 + 1e-9)
    cut = churned_levels(levels, SamplerOptions("heun", churn=100), dataclasses.replace(times, sigma_max=80.0))
    assert cut[1].edm_sigma == pytest.approx(max(80.0, levels[1].edm_sigma))
