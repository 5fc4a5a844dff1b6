"""From a uniform draw to a timestep: evenly, or by the losses seen."""

import dataclasses
import json

import torch

from dist_diffusion.diffusion.timesteps import UNIFORM_SHARE, WARM, LossHistory, uniform_timesteps

NUM = 8


def grid(num: int) -> torch.Tensor:
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


def warm(seed: int = 0) -> LossHistory:
    """A history that has seen WARM losses of each timestep."""
    losses = torch.rand(NUM * WARM, generator=torch.Generator().manual_seed(seed)) + 0.1
    return LossHistory.empty(NUM).updated(torch.arange(NUM).repeat(WARM), losses * (1 + torch.arange(NUM).repeat(WARM)))


def test_uniform_timesteps_cover_every_timestep_and_never_reach_the_number() -> None:
    assert torch.equal(torch.bincount(uniform_timesteps(grid(4000), 1000), minlength=1000), torch.full((1000,), 4))
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for num in (21, 1000, 3000, 4096):
        assert uniform_timesteps(ends, num).tolist() == [0, num - 1]


def test_the_ring_keeps_the_last_losses_in_order() -> None:
    history = LossHistory.empty(3)
    losses = torch.arange(1.0, 24.0)
    history = history.updated(torch.tensor([2]).repeat(23), losses)
    assert history.counts.tolist() == [0, 0, 23]
    assert sorted(history.losses[2].tolist()) == losses[-WARM:].tolist()
    assert not history.losses[:2].any()
    # The next one replaces the oldest, 14.
    assert sorted(history.updated(torch.tensor([2]), torch.tensor([99.0])).losses[2].tolist())[:2] == [15.0, 16.0]


def test_one_by_one_or_in_one_batch_is_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    t, losses = torch.randint(0, NUM, (300,), generator=generator), torch.rand(300, generator=generator)
    together = LossHistory.empty(NUM)
    for part in torch.arange(300).split(70):
        together = together.updated(t[part], losses[part])
    alone = LossHistory.empty(NUM)
    for i in range(300):
        alone = alone.updated(t[i : i + 1], losses[i : i + 1])
    assert torch.equal(together.losses, alone.losses) and torch.equal(together.counts, alone.counts)
    for i in range(NUM):
        expected = losses[t == i][-WARM:].double().sort().values
        assert torch.equal(together.losses[i].sort().values, expected)


def test_an_update_leaves_the_old_history_alone() -> None:
    before = warm()
    copy = before.losses.clone()
    before.updated(torch.tensor([0]), torch.tensor([5.0]))
    assert torch.equal(before.losses, copy)


def test_probabilities_are_uniform_until_every_timestep_is_known() -> None:
    history = warm()
    short = dataclasses.replace(history, counts=history.counts.clone().index_fill(0, torch.tensor([3]), WARM - 1))
    assert torch.equal(short.probabilities(), torch.full((NUM,), 1 / NUM, dtype=torch.float64))
    t, weights = short.draw(grid(80))
    assert torch.bincount(t).tolist() == [10] * NUM and (weights == 1).all()
    # On the edge of two parts as well it is what uniform timesteps are.
    edges = torch.arange(NUM, dtype=torch.float64) / NUM
    assert torch.equal(short.draw(edges)[0], uniform_timesteps(edges, NUM))


def test_probabilities_follow_the_root_mean_square() -> None:
    history = warm()
    p = history.probabilities()
    root = history.losses.double().pow(2).mean(1).sqrt()
    torch.testing.assert_close(p, (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / NUM)
    torch.testing.assert_close(p.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert p.min() < 0.05 < 0.2 < p.max()


def test_a_draw_inverts_the_cumulative_distribution_and_its_weights_keep_the_mean() -> None:
    history, num = warm(), 100_000
    p = history.probabilities()
    t, weights = history.draw(grid(num))
    assert (torch.bincount(t, minlength=NUM) - p * num).abs().max() <= 1
    assert (t.diff() >= 0).all()
    torch.testing.assert_close(weights, (1 / (NUM * p[t])).float())
    assert abs(weights.double().mean() - 1) < 1e-4
    # Of any quantity of t the weighted mean is the plain one.
    value = torch.arange(NUM, dtype=torch.float64) ** 2
    assert abs((weights.double() * value[t]).mean() - value.mean()) < 1e-2
    last, _ = history.draw(torch.tensor([1 - 2.0**-53], dtype=torch.float64))
    assert last.item() == NUM - 1


def test_a_history_survives_json_exactly() -> None:
    history = warm().updated(torch.tensor([1, 1]), torch.tensor([0.1, 1 / 3]))
    again = LossHistory.from_json(json.loads(json.dumps(history.to_json())))
    assert torch.equal(again.losses, history.losses) and again.losses.dtype == torch.float32
    assert torch.equal(again.counts, history.counts) and again.counts.dtype == torch.int64
