"""Noise schedules, their respacing, and the path of levels that a sampler walks."""

import math
from itertools import accumulate

import torch

from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.log_snr import LogSnrProcess, make_log_snr_process
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.errors import ConfigError

MAX_BETA = 0.999


def betas(options: DiffusionOptions) -> torch.Tensor:
    """The variances beta_1..beta_T of the forward process, float64 (T,)."""
    assert options.schedule != "log_snr", "continuous time has no betas"
    if options.schedule == "linear":
        return linear_betas(options.num_timesteps)
    return cosine_betas(options.num_timesteps)


def time_scale(options: DiffusionOptions) -> float:
    """What a timestep is multiplied by before the network is told."""
    return 1000 / options.num_timesteps if options.rescale_timesteps else 1.0


def linear_betas(num_timesteps: int) -> torch.Tensor:
    """DDPM's linear schedule (arXiv 2006.11239, section 4), scaled so that any T ends equally noisy."""
    scale = 1000 / num_timesteps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=torch.float64)


def cosine_betas(num_timesteps: int) -> torch.Tensor:
    """The cosine schedule (arXiv 2102.09672, equation 17), beta clipped at 0.999."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = [alpha_bar((i + 1) / num_timesteps) / alpha_bar(i / num_timesteps) for i in range(num_timesteps)]
    return torch.tensor([min(1 - r, MAX_BETA) for r in ratios], dtype=torch.float64)


def alpha_bars(beta: torch.Tensor) -> torch.Tensor:
    """Products of 1 - beta: the signal's share of variance at each timestep, (T,)."""
    return torch.cumprod(1 - beta, dim=0)


def respace(spec: str, num_timesteps: int) -> list[int]:
    """The timesteps that `spec` keeps, ascending.

    "50" or "90,60,60,20,20" divide the timesteps into equal sections and keep that many of each, evenly spread;
    "ddim25" keeps every k-th, for the first k that gives exactly 25.
    """
    if spec.startswith("ddim"):
        return _strided(_count(spec.removeprefix("ddim"), spec), num_timesteps)
    counts = [_count(part, spec) for part in spec.split(",")]
    base, extra = divmod(num_timesteps, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = base + (i < extra)
        if count > size:
            raise ConfigError(f"steps={spec}: section {i + 1} has {size} timesteps, {count} were asked for")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # Summed, not multiplied: halfway between two timesteps the sum's rounding decides, as in the released code.
        kept += [start + round(position) for position in accumulate([stride] * (count - 1), initial=0.0)]
        start += size
    return kept


def _count(text: str, spec: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f'steps={spec}: expected a count, counts like "90,60,60,20,20", or "ddim25"')
    return int(text)


def _strided(count: int, num_timesteps: int) -> list[int]:
    valid = {len(range(0, num_timesteps, k)): k for k in range(num_timesteps - 1, 0, -1)}
    if count not in valid:
        nearest = sorted(sorted(valid, key=lambda n: abs(n - count))[:3])
        raise ConfigError(
            f"steps=ddim{count}: no integer stride over {num_timesteps} timesteps keeps exactly {count}; "
            f"the nearest that work are {', '.join(f'ddim{n}' for n in nearest)}"
        )
    return list(range(0, num_timesteps, valid[count]))


def sampling_levels(options: DiffusionOptions, steps: str) -> list[Level]:
    """The path from the noisiest level down to the clean one, of a respaced process or evenly in continuous time."""
    if options.schedule != "log_snr":
        return respaced_path(options, respace(steps, options.num_timesteps))
    if not steps.isdecimal() or not int(steps):
        raise ConfigError(f"steps={steps}: in continuous time (diffusion.schedule=log_snr) expected a count")
    # Both ends included (arXiv 2207.12598, Algorithm 2).
    process, last = make_log_snr_process(options), int(steps) - 1
    return continuous_path(process, [process.angle(k / last if last else 1.0) for k in range(last + 1)])


def respaced_path(options: DiffusionOptions, kept: list[int]) -> list[Level]:
    """The path of the kept timesteps, ascending, of a discrete process."""
    bars = alpha_bars(betas(options))[kept].tolist()
    times = [t * time_scale(options) for t in kept]
    return path([math.sqrt(bar) for bar in bars], [math.sqrt(1 - bar) for bar in bars], times)


def continuous_path(process: LogSnrProcess, angles: list[float]) -> list[Level]:
    """The path of angles, ascending, of a continuous process."""
    return path([math.cos(a) for a in angles], [math.sin(a) for a in angles], [process.time(a) for a in angles])


def path(alphas: list[float], sigmas: list[float], times: list[float]) -> list[Level]:
    """Levels of falling noise, the clean one last, from alpha, sigma and model time by rising noise.

    Each carries the variances of its reverse step (arXiv 2102.09672, equation 15). Where the posterior's would be 0, at
    the last step, it is the step before's, as in the released code; so is fixed_large's there.
    """
    cleaner = [(1.0, 0.0), *zip(alphas[:-1], sigmas[:-1], strict=True)]
    beta = [_beta(alpha, sigma, *to) for alpha, sigma, to in zip(alphas, sigmas, cleaner, strict=True)]
    posterior = [b * (to[1] / sigma) ** 2 for b, sigma, to in zip(beta, sigmas, cleaner, strict=True)]
    posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]
    large = [posterior[0], *beta[1:]]
    levels = [
        Level(alpha, sigma, time, math.log(b), math.log(p), math.log(v))
        for alpha, sigma, time, b, p, v in zip(alphas, sigmas, times, beta, posterior, large, strict=True)
    ]
    return [*reversed(levels), CLEAN]


def _beta(alpha: float, sigma: float, cleaner_alpha: float, cleaner_sigma: float) -> float:
    """1 - (alpha / alpha')^2 of a step to a cleaner level (alpha', sigma'), without cancellation at either end."""
    if alpha > sigma:
        return (sigma**2 - cleaner_sigma**2) / cleaner_alpha**2
    return 1 - (alpha / cleaner_alpha) ** 2
