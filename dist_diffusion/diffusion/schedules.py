"""Noise schedules, their respacing, and the path of levels that a sampler walks."""

import math

import torch

from dist_diffusion.diffusion.denoiser import Level
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.errors import ConfigError

CLEAN = Level(alpha=1.0, sigma=0.0, model_time=0.0)
MAX_BETA = 0.999


def betas(options: DiffusionOptions) -> torch.Tensor:
    """The variances beta_1..beta_T of the forward process, float64 (T,)."""
    num = options.num_timesteps
    if options.schedule == "linear":
        return linear_betas(num)
    return cosine_betas(num)


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
            raise ConfigError(f"sampler.steps={spec}: section {i + 1} has {size} timesteps, {count} were asked for")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        kept += [start + round(stride * k) for k in range(count)]
        start += size
    return kept


def _count(text: str, spec: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise ConfigError(f'sampler.steps={spec}: expected a count, counts like "90,60,60,20,20", or "ddim25"')
    return int(text)


def _strided(count: int, num_timesteps: int) -> list[int]:
    valid = {len(range(0, num_timesteps, k)): k for k in range(num_timesteps, 0, -1)}
    if count not in valid:
        nearest = sorted(sorted(valid, key=lambda n: abs(n - count))[:3])
        raise ConfigError(
            f"sampler.steps=ddim{count}: no integer stride over {num_timesteps} timesteps keeps exactly {count}; "
            f"the nearest that work are {', '.join(f'ddim{n}' for n in nearest)}"
        )
    return list(range(0, num_timesteps, valid[count]))


def sampling_levels(options: DiffusionOptions, steps: str) -> list[Level]:
    """The respaced process from its noisiest level down to the clean one.

    Each level carries the bounds of the reverse step's variance in the respaced process
    (arXiv 2102.09672, equation 15), log beta and the log of the posterior's variance, whose first is its second.
    """
    kept = respace(steps, options.num_timesteps)
    bars = alpha_bars(betas(options))[kept].tolist()
    previous = [1.0, *bars[:-1]]
    beta = [1 - bar / prev for bar, prev in zip(bars, previous, strict=True)]
    posterior = [b * (1 - prev) / (1 - bar) for b, bar, prev in zip(beta, bars, previous, strict=True)]
    posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]
    levels = [
        Level(math.sqrt(bar), math.sqrt(1 - bar), float(t), log_beta=math.log(b), log_posterior_variance=math.log(p))
        for t, bar, b, p in zip(kept, bars, beta, posterior, strict=True)
    ]
    return [*reversed(levels), CLEAN]
