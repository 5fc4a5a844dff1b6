"""The metrics: pure functions of features and logits, computed in float64. docs/evaluation.md defines each.

`what` names the set in the DataError that non-finite values or too few rows raise.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from dist_diffusion import draws
from dist_diffusion.errors import DataError

NEIGHBOURS = 3
"""k of precision and recall."""
TILE_VALUES = 2**23
"""Distances held at a time: 64 MiB."""


def checked(rows: np.ndarray, what: str, at_least: int = 2) -> np.ndarray:
    """(N, D) as float64. DataError where a value is not finite or N < `at_least`."""
    assert rows.ndim == 2
    if len(rows) < at_least:
        raise DataError(f"{what}: {len(rows)} images are too few, the metrics need at least {at_least}")
    rows = rows.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DataError(f"{what}: {len(bad)} of {len(rows)} rows are not finite, the first is row {bad[0]}")
    return rows


def gaussian(features: np.ndarray, what: str = "features") -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and covariance (D, D), its divisor N - 1."""
    rows = checked(features, what)
    return rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False))


def frechet_distance(mu_1: np.ndarray, sigma_1: np.ndarray, mu_2: np.ndarray, sigma_2: np.ndarray) -> float:
    """|mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2)) of two Gaussians (arXiv 1706.08500, eq. 6).

    With sigma = R R^T the trace of the root is the sum of the singular values of R_1^T R_2. Singular covariances
    (N < D) need no epsilon, and nothing is squared, so small directions keep their digits.
    """
    assert mu_1.shape == mu_2.shape and sigma_1.shape == sigma_2.shape
    overlap = np.linalg.svd(_root(sigma_1).T @ _root(sigma_2), compute_uv=False).sum()
    difference = mu_1 - mu_2
    distance = difference @ difference + np.trace(sigma_1) + np.trace(sigma_2) - 2 * overlap
    return max(0.0, float(distance))


def _root(sigma: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(sigma)
    return vectors * np.sqrt(values.clip(min=0))


def score(logits: np.ndarray, splits: int, what: str = "logits") -> tuple[float, float]:
    """exp(E KL(p(y|x) || p(y))) (arXiv 1606.03498): mean and standard deviation (ddof 0) over `splits` parts in order.

    It is called the Inception Score where the logits are Inception's.
    """
    rows = checked(logits, what, at_least=splits)
    log_p = rows - rows.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    edges = [part * len(rows) // splits for part in range(splits + 1)]
    values = [_exp_mean_kl(log_p[start:end]) for start, end in itertools.pairwise(edges)]
    return float(np.mean(values)), float(np.std(values))


def _exp_mean_kl(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    # A class that underflows to 0 in every row adds nothing to any row: p log p is 0 there.
    log_mean = np.log(p.mean(axis=0).clip(min=np.finfo(np.float64).tiny))
    return float(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))


def kid(samples: np.ndarray, reference: np.ndarray, seed: int = 0, subsets: int = 100, size: int = 1000) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (arXiv 1801.01401), mean over random subsets of both sets.

    A subset has `size` rows, or those of the smaller set where that is less. The mean can be below 0.
    """
    first, second = sorted((checked(samples, "samples"), checked(reference, "reference")), key=len)
    size = min(size, len(first))
    if size == len(second):
        subsets = 1  # both subsets are the whole sets
    if size == len(first):
        # Only the larger set varies: what the smaller one contributes is computed once.
        cross = np.concatenate([_kernel(tile, first).mean(axis=1) for _, tile in _tiles(second, size)])
        within = _within(first)
        rows = [draws.permutation(seed, "kid/second", number, len(second))[:size] for number in range(subsets)]
        return float(np.mean([within + _within(second[chosen]) - 2 * cross[chosen].mean() for chosen in rows]))
    return float(np.mean([_subset_mmd(first, second, seed, number, size) for number in range(subsets)]))


def _subset_mmd(first: np.ndarray, second: np.ndarray, seed: int, number: int, size: int) -> float:
    x = first[draws.permutation(seed, "kid/first", number, len(first))[:size]]
    y = second[draws.permutation(seed, "kid/second", number, len(second))[:size]]
    return _within(x) + _within(y) - 2 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base


def _within(x: np.ndarray) -> float:
    """Mean of the kernel over all pairs of different rows."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def squared_radii(features: np.ndarray, what: str = "features", k: int = NEIGHBOURS) -> np.ndarray:
    """(N,): each row's squared distance to its k-th nearest other row."""
    rows = checked(features, what, at_least=k + 1)
    # The row itself, at distance 0, is the nearest.
    return np.concatenate([np.partition(d, k, axis=1)[:, k] for _, d in _squared_distances(rows, rows)])


def precision_recall(
    samples: np.ndarray, reference: np.ndarray, samples_radii: np.ndarray, reference_radii: np.ndarray
) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of samples within any reference row's ball, and
    of reference rows within any sample's. `_radii` are the balls' squared radii, from `squared_radii`.
    """
    samples, reference = checked(samples, "samples"), checked(reference, "reference")
    num_precise, covered = 0, np.zeros(len(reference), dtype=bool)
    for start, distances in _squared_distances(samples, reference):
        num_precise += int((distances <= reference_radii).any(axis=1).sum())
        covered |= (distances <= samples_radii[start : start + len(distances), None]).any(axis=0)
    return num_precise / len(samples), float(covered.mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, distances (rows, len(b))) for consecutive tiles of rows of `a`."""
    b_norms = (b * b).sum(axis=1)
    for start, tile in _tiles(a, max(1, TILE_VALUES // len(b))):
        distances = tile @ b.T
        distances *= -2
        distances += b_norms
        distances += (tile * tile).sum(axis=1)[:, None]
        yield start, distances.clip(min=0, out=distances)


def _tiles(rows: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
