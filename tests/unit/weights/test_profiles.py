"""Power-function averages: the closed forms of arXiv 2312.02696, and what combining snapshots of them gives."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from dist_diffusion.weights.profiles import (
    MAX_STD,
    Profile,
    exponent,
    gram,
    lerp_weight,
    solve,
    std_of,
    weights,
)

STDS = (0.05, 0.1)
STEPS = 400


def all_weights(profile: Profile) -> np.ndarray:
    return weights(profile, np.arange(1, profile.updates + 1))


@pytest.fixture(scope="module")
def trajectory() -> np.ndarray:
    """A random walk of 100 weights, [step, weight]."""
    return np.random.default_rng(0).normal(size=(STEPS, 100)).cumsum(axis=0)


def running(trajectory: np.ndarray, std: float) -> np.ndarray:
    """The average after every step, by its updates; [step, weight]."""
    average, found = np.full_like(trajectory[0], 1e6), []  # what it begins with is forgotten at once
    for i, values in enumerate(trajectory):
        average = average + lerp_weight(i + 1, exponent(std)) * (values - average)
        found.append(average)
    return np.stack(found)


def snapshots(every: int, stds: Sequence[float] = STDS) -> list[Profile]:
    return [Profile(t, exponent(std)) for t in range(every, STEPS + 1, every) for std in stds]


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.15, 3.56), (0.2, 1.83), (0.25, 0.72)])
def test_the_exponent_of_a_width(std: float, gamma: float) -> None:
    assert exponent(std) == pytest.approx(gamma, abs=0.005)


def test_widths_and_exponents_are_each_others_inverse() -> None:
    for std in (1e-3, 0.01, 0.05, 0.1, 0.25, 0.288):
        assert std_of(exponent(std)) == pytest.approx(std, rel=1e-9)
    assert std_of(0.0) == pytest.approx(MAX_STD, rel=1e-12)
    assert 0 < exponent(MAX_STD - 1e-6) < 1e-3


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.28])
@pytest.mark.parametrize("updates", [1, 2, 7, 100_000])
def test_the_weights_of_a_profile_sum_to_one(std: float, updates: int) -> None:
    found = all_weights(Profile(updates, exponent(std)))
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert (np.diff(found) >= 0).all()
    assert (weights(Profile(updates, exponent(std)), np.array([updates + 1, 2 * updates])) == 0).all()


def test_the_measured_width_approaches_the_one_asked_for() -> None:
    for std in (0.05, 0.1, 0.2):
        errors = []
        for updates in (100, 1000, 10_000):
            profile = Profile(updates, exponent(std))
            steps, found = np.arange(1, updates + 1), all_weights(profile)
            mean = found @ steps
            errors.append(abs(math.sqrt(found @ (steps - mean) ** 2) / updates / std - 1))
        assert errors[0] < 0.02
        assert errors[2] < 1e-6
        assert errors == sorted(errors, reverse=True)


def test_updates_give_each_step_its_weight(trajectory: np.ndarray) -> None:
    for std in (0.05, 0.28):
        found = running(trajectory, std)
        for updates in (1, 2, 50, STEPS):
            expected = all_weights(Profile(updates, exponent(std))) @ trajectory[:updates]
            np.testing.assert_allclose(found[updates - 1], expected, rtol=1e-9, atol=1e-9)


def test_an_update_keeps_its_digits_late_in_a_run() -> None:
    # 1 - (1 - 1/t)^2 = (2 t - 1) / t^2
    t = 10**9
    assert lerp_weight(t, 1.0) == pytest.approx((2 * t - 1) / t**2, rel=1e-12)


def test_products_are_the_sums_over_all_steps() -> None:
    profiles = [Profile(t, exponent(std)) for t in (1, 30, 1000, 70_000, 150_000) for std in (0.02, 0.05, 0.2)]
    table = np.stack([weights(profile, np.arange(1, 150_001)) for profile in profiles])
    np.testing.assert_allclose(gram(profiles), table @ table.T, rtol=1e-10)


def test_products_of_a_long_run_are_those_of_continuous_time() -> None:
    steps = 2_000_000
    profiles = [Profile(steps * i // 100, exponent(std)) for i in range(1, 101) for std in STDS]
    powers = np.array([profile.exponent + 1 for profile in profiles])
    ends = np.array([profile.updates for profile in profiles])
    a, b, first, second = powers[:, None], powers[None], ends[:, None], ends[None]
    shorter = np.minimum(first, second)
    expected = a * b / (a + b - 1) * (shorter / first) ** a * (shorter / second) ** b / shorter
    np.testing.assert_allclose(gram(profiles), expected, rtol=1e-6)


def test_a_snapshot_is_made_of_itself() -> None:
    kept = snapshots(40)
    for std, at in ((0.05, -2), (0.1, -1)):
        found = solve(kept, Profile(STEPS, exponent(std)))
        assert found.error < 1e-6
        np.testing.assert_allclose(found.coefficients, np.eye(len(kept))[at], atol=1e-9)


def test_the_error_is_that_of_the_combined_profile() -> None:
    kept, target = snapshots(40), Profile(STEPS, exponent(0.07))
    found = solve(kept, target)
    steps = np.arange(1, STEPS + 1)
    combined = found.coefficients @ np.stack([weights(profile, steps) for profile in kept])
    asked = weights(target, steps)
    assert found.error == pytest.approx(np.linalg.norm(combined - asked) / np.linalg.norm(asked), rel=1e-6)
    assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-12)
    # No other combination that sums to one is nearer.
    rng = np.random.default_rng(0)
    for move in rng.normal(scale=1e-3, size=(20, len(kept))):
        other = (found.coefficients + move - move.mean()) @ np.stack([weights(profile, steps) for profile in kept])
        assert np.linalg.norm(other - asked) > np.linalg.norm(combined - asked)


def test_what_is_made_is_the_running_average_of_that_width(trajectory: np.ndarray) -> None:
    kept_values = {std: running(trajectory, std) for std in STDS}
    for std in (0.07, 0.12):
        direct = running(trajectory, std)[-1]
        distance = min(np.linalg.norm(kept_values[other][-1] - direct) for other in STDS)
        errors, profile_errors = [], []
        for every in (80, 40, 20, 10):
            found = solve(snapshots(every), Profile(STEPS, exponent(std)))
            values = np.stack([kept_values[other][t - 1] for t in range(every, STEPS + 1, every) for other in STDS])
            difference = np.linalg.norm(found.coefficients @ values - direct)
            assert difference < 0.1 * distance
            errors.append(difference / np.linalg.norm(direct))
            profile_errors.append(found.error)
        # Measured with ten steps of snapshots (every 40): 4.6e-4 for 0.07, 3.2e-4 for 0.12.
        assert errors[1] < 1e-3
        assert errors == sorted(errors, reverse=True)
        assert errors[3] < errors[1] / 10
        assert profile_errors == sorted(profile_errors, reverse=True)
        assert profile_errors[1] < 0.01


def test_of_two_snapshots_at_one_step_a_width_between_is_nearer_than_either() -> None:
    kept, target = [Profile(STEPS, exponent(std)) for std in STDS], Profile(STEPS, exponent(0.07))
    both = solve(kept, target).error
    assert 0.01 < both < min(solve([one], target).error for one in kept) / 2


def test_snapshots_that_are_alike_share_their_coefficient() -> None:
    # After one update every profile is the first step's weights.
    kept = [Profile(t, exponent(std)) for t in (1, 40) for std in STDS]
    found = solve([*kept, *kept[-2:]], Profile(40, exponent(0.07)))
    assert np.abs(found.coefficients).max() < 2
    assert found.coefficients[2:4] == pytest.approx(found.coefficients[4:], abs=0.02)
    assert found.error == pytest.approx(solve(kept[1:], Profile(40, exponent(0.07))).error, rel=1e-3)
