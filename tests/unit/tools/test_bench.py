"""The benchmark's arithmetic, and that it times nothing that it has not compared."""

import pytest
import torch
from benchmarks import setting
from benchmarks.timing import MIN_ROUNDS, Row, alternate, compared, table

from dist_diffusion.errors import InternalError


def test_every_candidate_runs_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    taken = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=0.0)  # type: ignore[misc]
    assert {name: len(times) for name, times in taken.items()} == dict.fromkeys("abc", MIN_ROUNDS)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == MIN_ROUNDS + 1, "one round is not counted"
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1


def test_a_row_has_medians_spreads_and_their_ratio() -> None:
    row = compared("x", 12, ours=[1.0, 2.0, 3.0], peer=[6.0, 4.0, 5.0])
    assert row == Row("x", ours=6.0, peer=2.4, ours_spread=(4.0, 12.0), peer_spread=(2.0, 3.0))
    content = row.to_json()
    assert content["ratio"] == pytest.approx(2.5) and content["unit"] == "img/s"
    assert {"name", "ours", "peer"} <= set(content) and "2.50" in table([row])


def test_networks_that_differ_are_not_compared() -> None:
    with pytest.raises(InternalError, match="more than"):
        setting.check("forward", torch.ones(3), torch.zeros(3), 0.5)
    with pytest.raises(InternalError):
        setting.check("forward", torch.full((3,), float("nan")), torch.zeros(3), 0.5)
