import numpy as np
import pytest

from dist_diffusion import draws
from dist_diffusion.errors import DataError
from dist_diffusion.evaluation import metrics


def _rows(num: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(num, dimensions)) + shift).astype(np.float32)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 2.0])
    expected = 3 * 2.0**2 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = metrics.frechet_distance(np.zeros(3), np.diag(a), np.full(3, 2.0), np.diag(b))
    assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_covariances_that_do_not_commute():
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    # The trace of a 2 x 2 root: its square is trace + 2 sqrt(det).
    root_trace = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = metrics.frechet_distance(np.zeros(2), a, np.zeros(2), b)
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root_trace, rel=1e-12)


@pytest.mark.parametrize("num", [20, 400])
def test_frechet_distance_of_a_set_and_itself_is_zero_even_where_its_covariance_is_singular(num):
    rows = 100 * _rows(num, 96, seed=0, shift=3.0)
    own = metrics.gaussian(rows)
    assert metrics.frechet_distance(*own, *own) == pytest.approx(0, abs=1e-6)
    # The same set in another order: other rounding.
    assert metrics.frechet_distance(*own, *metrics.gaussian(rows[::-1])) == pytest.approx(0, abs=1e-6)


def test_gaussian_divides_by_n_minus_1():
    mu, sigma = metrics.gaussian(np.array([[0.0, 0.0], [2.0, 4.0]], dtype=np.float32))
    assert mu.tolist() == [1, 2] and sigma.tolist() == [[2, 4], [4, 8]]


def test_score_is_1_for_equal_and_the_number_of_classes_for_sure_and_balanced_predictions():
    assert metrics.score(np.zeros((12, 5)), splits=3) == pytest.approx((1, 0))
    assert metrics.score(1e4 * np.tile(np.eye(5), (4, 1)), splits=2) == pytest.approx((5, 0))


def test_score_splits_in_order():
    logits = 1e4 * np.eye(4)[[0, 1, 2, 3, 0, 0, 0, 0]]
    assert metrics.score(logits, splits=2) == pytest.approx((2.5, 1.5))


def _brute_force_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / len(a) + 1) ** 3

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        return np.mean([kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j])

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def _subset(rows: np.ndarray, stream: str, number: int, size: int) -> np.ndarray:
    return rows[draws.permutation(5, stream, number, len(rows))[:size]]


@pytest.mark.parametrize(("num_x", "num_y", "size"), [(9, 9, 20), (9, 14, 20), (9, 14, 9), (14, 9, 6)])
def test_kid_is_the_mean_of_the_unbiased_mmd_over_keyed_subsets(num_x, num_y, size):
    x, y = _rows(num_x, 6, seed=1), _rows(num_y, 6, seed=2, shift=0.5)
    first, second = sorted((x, y), key=len)
    rows = min(size, 9)
    pairs = [(_subset(first, "kid/first", i, rows), _subset(second, "kid/second", i, rows)) for i in range(4)]
    expected = np.mean([_brute_force_mmd(a, b) for a, b in pairs])
    assert metrics.kid(x, y, seed=5, subsets=4, size=size) == pytest.approx(expected, rel=1e-12)


def test_kid_is_zero_on_average_for_one_distribution_and_sees_a_shift():
    x, y = _rows(1200, 6, seed=1), _rows(1200, 6, seed=2)
    values = [metrics.kid(x, y + shift, subsets=10, size=600) for shift in (0, 0.3)]
    assert abs(values[0]) < 0.02 and values[1] > 0.1


def test_precision_and_recall_by_hand():
    # On a line, k = 1: reference balls 0 +- 1, 1 +- 1, 10 +- 9; samples' 0.5 +- 29.5, 30 +- 29.5.
    reference, samples = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [30.0]])
    reference_radii = metrics.squared_radii(reference, k=1)
    assert reference_radii == pytest.approx([1, 1, 81])
    samples_radii = metrics.squared_radii(samples, k=1)
    assert metrics.precision_recall(samples, reference, samples_radii, reference_radii) == (0.5, 1.0)
    assert metrics.precision_recall(samples, reference, samples_radii / 100, reference_radii) == (0.5, 2 / 3)


@pytest.mark.parametrize("tile_values", [1, 100, 2**23])
def test_precision_and_recall_do_not_depend_on_the_tiles(monkeypatch, tile_values):
    monkeypatch.setattr(metrics, "TILE_VALUES", tile_values)
    a, b = _rows(70, 4, seed=1), _rows(50, 4, seed=2, shift=0.8)
    distances = np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))
    radii_a, radii_b = (
        np.sort(np.sqrt(((s[:, None].astype(np.float64) - s[None]) ** 2).sum(-1)), axis=1)[:, 3] for s in (a, b)
    )
    expected = (distances <= radii_b).any(axis=1).mean(), (distances <= radii_a[:, None]).any(axis=0).mean()
    assert min(expected) > 0 and max(expected) < 1
    assert metrics.precision_recall(a, b, metrics.squared_radii(a), metrics.squared_radii(b)) == expected


def test_precision_and_recall_of_a_set_and_itself_and_of_sets_apart():
    a = _rows(40, 4, seed=1)
    radii = metrics.squared_radii(a)
    assert metrics.precision_recall(a, a, radii, radii) == (1, 1)
    assert metrics.precision_recall(a, a + 100, radii, radii) == (0, 0)


def test_values_that_are_not_finite_are_named():
    rows = _rows(10, 4, seed=1)
    rows[3, 1] = np.nan
    for metric in (metrics.gaussian, metrics.squared_radii):
        with pytest.raises(DataError, match=r"out/a.npz: 1 of 10 rows are not finite, the first is row 3"):
            metric(rows, "out/a.npz")
    with pytest.raises(DataError, match="samples: 1 of 10 rows"):
        metrics.kid(rows, _rows(10, 4, seed=2))


def test_too_few_images_are_an_error():
    with pytest.raises(DataError, match=r"a.npz: 1 images are too few"):
        metrics.gaussian(_rows(1, 4, seed=1), "a.npz")
    with pytest.raises(DataError, match="at least 4"):
        metrics.squared_radii(_rows(3, 4, seed=1))
