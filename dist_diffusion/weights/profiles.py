"""Power-function averages (arXiv 2312.02696, section 3 and appendix C): how much each step weighs in them, and how one
of any width is put together from others.

With gamma the exponent, step k weighs w_T(k) = (k/T)^(gamma + 1) - ((k-1)/T)^(gamma + 1) after T updates, k = 1 ... T,
and all of them together one. The width is relative: the standard deviation of k is about std * T, for every T.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dist_diffusion.config.averages import MAX_STD

ROUNDING = 1e-7
"""What a snapshot in fp32 is off, relatively."""
CHUNK = 1 << 16
"""Steps that are summed over at a time."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """The weights of an average after so many updates."""

    updates: int
    exponent: float


@dataclass(frozen=True)
class Solution:
    """The combination of profiles that is nearest to another one."""

    coefficients: Floats
    """Of each, in order; they sum to one."""
    error: float
    """The norm of the difference over the steps, relative to that of the profile asked for."""


def exponent(std: float) -> float:
    """Gamma of a relative width, 0 < std < MAX_STD: std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    assert 0 < std < MAX_STD, std
    # With x = gamma + 2: x^3 + x^2 - (x - 1) / std^2 = 0. Of its roots two are above 1 and only one above 2.
    roots = np.roots([1.0, 1.0, -(std**-2), std**-2])
    return float(roots.real.max()) - 2.0


def std_of(exponent: float) -> float:
    """The relative width of a profile."""
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


def lerp_weight(updates: int, exponent: float) -> float:
    """1 - b of update number t = 1, 2, ...: e <- b e + (1 - b) p with b = (1 - 1/t)^(exponent + 1)."""
    if updates == 1:
        return 1.0
    return -math.expm1((exponent + 1) * math.log1p(-1 / updates))


def weights(profile: Profile, steps: NDArray[np.int64]) -> Floats:
    """Of the given steps, from 1 on; those after the profile's last update have none."""
    found = _weights(steps, profile.updates, np.array([profile.exponent + 1]))[0]
    return np.where(steps <= profile.updates, found, 0.0)


def gram(profiles: Sequence[Profile]) -> Floats:
    """The inner products sum_k w_i(k) w_j(k) of all pairs, exact but for rounding.

    Up to their length, w_i is a function of its exponent alone, scaled: so each pair of exponents is summed once.
    """
    updates = np.array([profile.updates for profile in profiles])
    powers, which = np.unique([profile.exponent + 1 for profile in profiles], return_inverse=True)
    lengths, length_of = np.unique(updates, return_inverse=True)
    sums = np.stack(list(_sums(lengths.tolist(), powers)))
    shorter = np.minimum.outer(length_of, length_of)
    scale = (lengths[shorter] / updates[:, None]) ** powers[which][:, None]
    return sums[shorter, which[:, None], which[None, :]] * scale * scale.T


def solve(snapshots: Sequence[Profile], target: Profile) -> Solution:
    """Least squares over the steps, as appendix C.3 has it, among combinations whose coefficients sum to one.

    So a weight that has not moved keeps its value, however few the snapshots.
    """
    products = gram([*snapshots, target])
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    ours, asked, ones = cosines[:-1, :-1], cosines[:-1, -1], 1 / norms[:-1]
    # Of two nearly alike, as after one update all are, neither then gets a large coefficient.
    rounded = ours + ROUNDING**2 * np.eye(len(ours))
    free, step = np.linalg.solve(rounded, np.stack([asked, ones], axis=1)).T
    best = free + step * (1 / norms[-1] - ones @ free) / (ones @ step)
    squared = 1 - 2 * best @ asked + best @ ours @ best
    return Solution(best * norms[-1] / norms[:-1], math.sqrt(max(float(squared), 0.0)))


def _sums(lengths: Sequence[int], powers: Floats) -> Iterator[Floats]:
    """For each length N, ascending: sum_{k <= N} w_N(k) w_N(k) of every pair of powers gamma + 1."""
    total, before = np.zeros((len(powers), len(powers))), 0
    for length in lengths:
        total = total * (before / length) ** np.add.outer(powers, powers)
        for start in range(before + 1, length + 1, CHUNK):
            found = _weights(np.arange(start, min(start + CHUNK, length + 1)), length, powers)
            total += found @ found.T
        before = length
        yield total


def _weights(steps: NDArray[np.int64], updates: int, powers: Floats) -> Floats:
    """w_T(k) at [power, step]. As (k/T)^a (1 - (1 - 1/k)^a): the difference of two powers would lose its digits."""
    a = powers[:, None]
    with np.errstate(divide="ignore"):  # of step 1, whose log is -inf as it should be
        return (steps / updates) ** a * -np.expm1(a * np.log1p(-1 / steps))
