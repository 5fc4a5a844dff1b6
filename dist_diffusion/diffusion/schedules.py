"""Noise schedules, their respacing, and the path of levels that a sampler walks."""

import math
from itertools import accumulate

import torch

from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.log_snr import MODEL_TIMES, make_log_snr_process
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
    """The path from the noisiest level down to the clean one, of a respaced process or in continuous time."""
    if options.schedule == "log_snr":
        return _continuous_levels(options, _count(steps, steps))
    kept = respace(steps, options.num_timesteps)
    times = [t * time_scale(options) for t in kept]
    return path(alpha_bars(betas(options))[kept].tolist(), times)


def _continuous_levels(options: DiffusionOptions, count: int) -> list[Level]:
    """`count` levels evenly spaced in u, both ends included, and the clean one (arXiv 2207.12598, Algorithm 2)."""
    process = make_log_snr_process(options)
    angles = [process.angle(1.0 if count == 1 else k / (count - 1)) for k in range(count)]
    return path([math.cos(phi) ** 2 for phi in angles], [MODEL_TIMES * phi / (math.pi / 2) for phi in angles])


def path(bars: list[float], times: list[float]) -> list[Level]:
    """Levels of falling noise, the clean one last, from alpha_bar and model time by rising noise.

    Each carries the variances of its reverse step (arXiv 2102.09672, equation 15). Where the posterior's would be 0, at
    the last step, it is the step before's, as in the released code; so is fixed_large's there.
    """
    previous = [1.0, *bars[:-1]]
    beta = [1 - bar / prev for bar, prev in zip(bars, previous, strict=True)]
    posterior = [b * (1 - prev) / (1 - bar) for b, bar, prev in zip(beta, bars, previous, strict=True)]
    posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]
    large = [posterior[0], *beta[1:]]
    levels = [
        Level(math.sqrt(bar), math.sqrt(1 - bar), time, math.log(b), math.log(p), math.log(v))
        for time, bar, b, p, v in zip(times, bars, beta, posterior, large, strict=True)
    ]
    return [*reversed(levels), CLEAN]
