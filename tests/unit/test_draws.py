"""Keyed draws: pinned for ever, and as random as they claim."""

import numpy as np
import pytest
import torch

from dist_diffusion import draws


def test_draws_are_pinned() -> None:
    """A change here would silently make every run another run."""
    assert draws.key(0, "noise", 0) == 18289175030525828258
    assert draws.uniform(7, "timestep", 123) == 0.5841609533161444
    assert draws.permutation(1, "shards", 2, 8).tolist() == [6, 0, 3, 5, 7, 4, 1, 2]
    assert draws.normal(0, "noise", 5, (3,)).tolist() == [-1.1065980195999146, 0.17093656957149506, 0.38769254088401794]


def test_uniform_is_uniform_and_streams_are_independent() -> None:
    u = np.array([draws.uniform(0, "a", j) for j in range(20_000)])
    v = np.array([draws.uniform(0, "b", j) for j in range(20_000)])
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # 99.9 % of 19 degrees of freedom
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03


def test_permutation_holds_every_index_once() -> None:
    for length in (0, 1, 2, 1000):
        assert sorted(draws.permutation(3, "x", 0, length)) == list(range(length))
    assert (draws.permutation(3, "x", 0, 100) != draws.permutation(3, "x", 1, 100)).any()


def test_normal_has_the_moments_of_a_normal() -> None:
    z = torch.stack([draws.normal(0, "noise", j, (3, 16, 16)) for j in range(100)]).double()
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


def test_draw_objects_give_values_and_digest_what_they_gave() -> None:
    uniform, noise, dropped = draws.Uniform("t"), draws.Normal("n", (2,)), draws.Bernoulli("d", 0.25)
    assert uniform.at(0, 9).item() == draws.uniform(0, "t", 9)
    assert torch.equal(noise.at(0, 9), draws.normal(0, "n", 9, (2,)))
    share = np.mean([dropped.at(0, j).item() for j in range(4000)])
    assert abs(share - 0.25) < 0.03
    for draw in (uniform, noise, dropped):
        assert draw.digest_bytes(draw.at(0, 1)) == draw.digest_bytes(draw.at(0, 1))
    assert noise.digest_bytes(noise.at(0, 1)) != noise.digest_bytes(noise.at(0, 2))


def test_digest_separates_its_parts() -> None:
    assert draws.digest(draws.framed([b"ab", b"c"])) != draws.digest(draws.framed([b"a", b"bc"]))


def test_every_step_has_one_stratified_draw_in_each_part() -> None:
    batch = 12
    u = np.array([draws.Stratified("timestep", batch).at(3, j).item() for j in range(20 * batch)]).reshape(20, batch)
    parts = (u * batch).astype(int)
    assert (np.sort(parts, axis=1) == np.arange(batch)).all()
    # Dealt anew at every step, and anywhere within a part.
    assert len({tuple(step) for step in parts}) == 20
    within = u * batch - parts
    assert abs(within.mean() - 0.5) < 0.05 and within.std() > 0.25
    assert (parts[:, 0] != parts[0, 0]).any()


def test_a_stratified_draw_is_of_its_position_alone() -> None:
    """So it is the same whichever rank makes it, and in whatever order."""
    draw = draws.Stratified("timestep", 8)
    forwards = [draw.at(0, j).item() for j in range(64)]
    backwards = [draws.Stratified("timestep", 8).at(0, j).item() for j in reversed(range(64))]
    assert forwards == backwards[::-1]
    assert forwards != [draws.Stratified("other", 8).at(0, j).item() for j in range(64)]
    assert draw.digest_bytes(draw.at(0, 5)) == draws.Uniform("t").digest_bytes(draw.at(0, 5))


def test_a_stratified_draw_stays_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """(B - 1 + u) / B rounds to 1 for the largest u."""
    monkeypatch.setattr(draws, "uniform", lambda *arguments: draws.BELOW_ONE)
    for batch in (1, 3, 7, 1000):
        found = [draws.Stratified("timestep", batch).at(0, j).item() for j in range(batch)]
        assert max(found) == draws.BELOW_ONE < 1
