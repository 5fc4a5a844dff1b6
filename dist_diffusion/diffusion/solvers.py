"""Solvers of the probability-flow equation, and of its stochastic form.

Like every sampler they are handed a denoiser, a path of levels (noisiest first, clean last) and noise. What they solve
is d(x / alpha) / d(sigma / alpha) = eps (arXiv 2010.02502, equation 14; arXiv 2206.00364, equation 1).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from dist_diffusion.diffusion.denoiser import Denoiser
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.samplers import Noise


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x: torch.Tensor,
    noise: Noise,
    labels: torch.Tensor | None,
    raised: Sequence[Level],
    churn_noise: float = 1.0,
) -> torch.Tensor:
    """Euler steps; each begins by adding noise up to its level of `raised` (arXiv 2206.00364, Algorithm 2)."""
    for (level, following), start in zip(pairwise(levels), raised, strict=True):
        x = raise_noise(x, level, start, noise, churn_noise)
        prediction = denoiser(x, start, labels)
        x = following.alpha * prediction.x0 + following.sigma * prediction.direction
    return x


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    levels: Sequence[Level],
    x: torch.Tensor,
    noise: Noise,
    labels: torch.Tensor | None,
    raised: Sequence[Level],
    churn_noise: float = 1.0,
) -> torch.Tensor:
    """Heun's second-order steps, as `euler` otherwise; the step to the clean level is Euler's (EDM's Algorithm 2)."""
    for (level, following), start in zip(pairwise(levels), raised, strict=True):
        x = raise_noise(x, level, start, noise, churn_noise)
        first = denoiser(x, start, labels)
        x = following.alpha * first.x0 + following.sigma * first.eps
        if following.sigma:
            second = denoiser(x, following, labels)
            half = (following.edm_sigma - start.edm_sigma) / 2
            x = x + following.alpha * half * (second.eps - first.eps)
    return x


def raise_noise(x: torch.Tensor, level: Level, start: Level, noise: Noise, std: float) -> torch.Tensor:
    """x_t with noise added from `level` to `start`; none is drawn where they are the same."""
    if start == level:
        return x
    added = std * math.sqrt(start.edm_sigma**2 - level.edm_sigma**2)
    return start.alpha * (x / level.alpha + added * noise())


@torch.no_grad()
def dpmpp_2m(
    denoiser: Denoiser, levels: Sequence[Level], x: torch.Tensor, noise: Noise, labels: torch.Tensor | None
) -> torch.Tensor:
    """DPM-Solver++(2M), deterministic (arXiv 2211.01095, Algorithm 2)."""
    previous = None
    for level, following in pairwise(levels):
        x0, h = denoiser(x, level, labels).x0, step_length(level, following)
        d = extrapolated(x0, h, previous)
        x = following.sigma / level.sigma * x - following.alpha * math.expm1(-h) * d
        previous = x0, h
    return x


@torch.no_grad()
def dpmpp_sde(
    denoiser: Denoiser, levels: Sequence[Level], x: torch.Tensor, noise: Noise, labels: torch.Tensor | None
) -> torch.Tensor:
    """SDE-DPM-Solver++(2M): the same with fresh noise in every step (arXiv 2211.01095, equation 18 and appendix B)."""
    previous = None
    for level, following in pairwise(levels):
        x0, h = denoiser(x, level, labels).x0, step_length(level, following)
        d = extrapolated(x0, h, previous)
        x = following.sigma / level.sigma * math.exp(-h) * x - following.alpha * math.expm1(-2 * h) * d
        if following.sigma:
            x = x + following.sigma * math.sqrt(-math.expm1(-2 * h)) * noise()
        previous = x0, h
    return x


@torch.no_grad()
def unipc(
    denoiser: Denoiser, levels: Sequence[Level], x: torch.Tensor, noise: Noise, labels: torch.Tensor | None
) -> torch.Tensor:
    """UniPC of order 2 with B_2(h) = e^h - 1 (arXiv 2302.04867, Algorithm 1): DPM-Solver++(2M), whose every step is
    corrected once the image at its end is known, without another evaluation.
    """
    previous, x0 = None, denoiser(x, levels[0], labels).x0
    for level, following in pairwise(levels):
        h = step_length(level, following)
        kept, moved = following.sigma / level.sigma * x, -following.alpha * math.expm1(-h)
        x = kept + moved * extrapolated(x0, h, previous)
        if following.sigma:
            found = denoiser(x, following, labels).x0
            x = kept + moved * corrected(x0, found, h, previous)
            x0, previous = found, (x0, h)
    return x


Previous = tuple[torch.Tensor, float] | None
"""The image predicted one step earlier, and that step's length."""


def extrapolated(x0: torch.Tensor, h: float, previous: Previous) -> torch.Tensor:
    """The image in the middle of a step of length h (D of DPM-Solver++(2M)); x0 at the ends of the path."""
    if previous is None or math.isinf(h):
        return x0
    before, h_before = previous
    return x0 + h / (2 * h_before) * (x0 - before)


def corrected(x0: torch.Tensor, found: torch.Tensor, h: float, previous: Previous) -> torch.Tensor:
    """The image that a step of length h should have used, given the one found at its end (UniC, equation 8).

    Its weights make the step exact for images linear, and after the first step quadratic, in log(alpha / sigma).
    """
    if previous is None:
        return (x0 + found) / 2
    before, h_before = previous
    r = -h_before / h
    b_1 = (math.expm1(-h) / -h - 1) / math.expm1(-h)
    b_2 = 2 * ((math.expm1(-h) / -h - 1) / -h - 0.5) / math.expm1(-h)
    weight = (b_1 - b_2) / (1 - r)
    return x0 + weight / r * (before - x0) + (b_1 - weight) * (found - x0)


def step_length(level: Level, following: Level) -> float:
    """The step in log(alpha / sigma); infinite to the clean level."""
    return math.log(level.edm_sigma / following.edm_sigma) if following.sigma else math.inf
