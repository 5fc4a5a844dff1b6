"""Which noise levels a sampler walks: the path that its options describe."""

import math

from dist_diffusion.diffusion.levels import ROUNDING, Level
from dist_diffusion.diffusion.log_snr import make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions, Spacing
from dist_diffusion.diffusion.schedules import continuous_path, path, respaced_path, sampling_levels
from dist_diffusion.diffusion.timeline import Timeline, timeline
from dist_diffusion.errors import ConfigError

FIRST_ORDER = ("ddpm", "ddim", "euler")
"""The others look further along the path, and go astray where it begins or ends with a jump in log-SNR."""


def sampler_levels(options: DiffusionOptions, sampler: SamplerOptions) -> list[Level]:
    """The path of a sampler, noisiest level first, the clean one last. ConfigError names the setting."""
    check_whole_timesteps(options, sampler)
    spacing = spacing_of(sampler)
    if spacing == "even":
        return sampling_levels(options, sampler.steps)
    if not sampler.steps.isdecimal() or not int(sampler.steps):
        raise ConfigError(f"sampler.steps={sampler.steps}: with sampler.spacing={spacing} expected a count")
    num = int(sampler.steps)
    if spacing == "trailing":
        return trailing_levels(options, num)
    times = timeline(options)
    low, high = max(sampler.sigma_min, times.sigma_min), min(sampler.sigma_max, times.sigma_max)
    if low >= high:
        raise ConfigError(
            f"sampler.sigma_min={sampler.sigma_min}, sampler.sigma_max={sampler.sigma_max}: the model was trained "
            f"from {times.sigma_min:.3g} to {times.sigma_max:.3g}, of which nothing lies between"
        )
    sigmas = karras(low, high, num, sampler.rho) if spacing == "karras" else geometric(low, high, num)
    levels = [times.level(sigma) for sigma in sigmas]
    return path([at.alpha for at in levels], [at.sigma for at in levels], [at.model_time for at in levels])


def spacing_of(sampler: SamplerOptions) -> Spacing:
    """The spacing that is given, or suits the sampler."""
    return sampler.spacing or ("even" if sampler.name in FIRST_ORDER else "log_snr")


def check_whole_timesteps(options: DiffusionOptions, sampler: SamplerOptions) -> None:
    """ConfigError where a sampler goes between the timesteps of a model that predicts the mean of a whole step."""
    spacing = spacing_of(sampler)
    if options.prediction == "mean" and (spacing not in ("even", "trailing") or sampler.churn):
        raise ConfigError(
            f"sampler.spacing={spacing}, sampler.churn={sampler.churn:g}: these levels lie between timesteps, "
            "diffusion.prediction=mean is of whole ones: use spacing even or trailing, and churn 0"
        )


def trailing_levels(options: DiffusionOptions, num: int) -> list[Level]:
    """Every T / num-th timestep, counted back from the last (arXiv 2305.08891, section 3.3), or part of u."""
    if options.schedule == "log_snr":
        process = make_log_snr_process(options)
        return continuous_path(process, [process.angle((k + 1) / num) for k in range(num)])
    total = options.num_timesteps
    if num > total:
        raise ConfigError(f"sampler.steps={num}: there are {total} timesteps")
    return respaced_path(options, [round((k + 1) * total / num) - 1 for k in range(num)])


def geometric(low: float, high: float, num: int) -> list[float]:
    """`num` values from low to high, even in the logarithm: the log-SNR is -2 of it. One is the highest."""
    return [high * (low / high) ** ((num - 1 - k) / max(num - 1, 1)) for k in range(num)]


def karras(low: float, high: float, num: int, rho: float) -> list[float]:
    """`num` values from low to high, even in sigma^(1 / rho) (arXiv 2206.00364, equation 5). One is the highest."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [(first + (num - 1 - k) / max(num - 1, 1) * (last - first)) ** rho for k in range(num)]


def churned_levels(levels: list[Level], sampler: SamplerOptions, times: Timeline) -> list[Level]:
    """For each step the level to which noise is added first: sigma (1 + gamma), at most the process's noisiest.

    gamma is min(S_churn / N, sqrt(2) - 1) (arXiv 2206.00364, Algorithm 2, line 3).
    """
    gamma = min(sampler.churn / (len(levels) - 1), math.sqrt(2) - 1)
    highest = math.inf if sampler.churn_max is None else sampler.churn_max
    raised = []
    for level in levels[:-1]:
        sigma = min(level.edm_sigma * (1 + gamma), times.sigma_max)
        within = sampler.churn_min <= level.edm_sigma <= highest and sigma > level.edm_sigma * (1 + ROUNDING)
        raised.append(times.level(sigma) if within else level)
    return raised
