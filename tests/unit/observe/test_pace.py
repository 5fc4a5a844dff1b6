"""A row's account of the ranks' time."""

import pytest

from dist_diffusion.observe.pace import ROWS_BETWEEN_WARNINGS, Interval, SlowRankWarning, Spread, columns, spread


def interval(host: str, data_wait_s: float, forward_s: float, peak_memory: int = 0) -> Interval:
    return Interval(host, 10, 20.0, data_wait_s, forward_s, peak_memory)


def test_columns_of_even_ranks() -> None:
    ranks = [interval("a", 1.0, 4.0, 2**30), interval("b", 1.2, 4.0, 3 * 2**29)]
    assert columns(ranks, flops_per_step=3e12, peak_tflops=6.0) == {
        "step_s": 2.0,
        "data_wait_share": 0.055,
        "forward_s": 0.4,
        "step_time_spread": pytest.approx(5.2 / 5.1, rel=1e-3),
        "peak_memory_gib": 1.5,
        "tflops_per_s": 1.5,
        "mfu": 0.25,
    }
    assert columns(ranks, flops_per_step=3e12, peak_tflops=None)["mfu"] is None


def test_a_slow_rank_is_named_whether_its_data_or_its_device_is_slow() -> None:
    for slow in (interval("c", 6.0, 4.0), interval("c", 1.0, 9.0)):
        ranks = [interval("a", 1.0, 4.0), interval("b", 1.0, 4.0), slow, interval("d", 1.0, 4.0)]
        assert spread(ranks) == Spread(1.6, 2, "c")
        row = columns(ranks, 1.0, None)
        assert (row["step_time_spread"], row["slowest_rank"], row["slowest_host"]) == (1.6, 2, "c")


def test_one_rank_is_its_own_mean() -> None:
    assert spread([interval("a", 0.5, 1.0)]) == Spread(1.0, 0, "a")


def test_a_slow_rank_is_said_when_it_stays_slow_and_rarely_again() -> None:
    def rows_said(*rows: tuple[float, int]) -> list[int]:
        warning = SlowRankWarning()
        return [i for i, (ratio, rank) in enumerate(rows) if warning.is_due(Spread(ratio, rank, "host"))]

    assert rows_said(*[(1.05, 0)] * 9) == []
    assert rows_said((1.5, 0), (1.5, 1), (1.5, 0), (1.0, 0), (1.5, 0), (1.5, 1)) == []
    assert rows_said((1.0, 0), (1.5, 3), (1.5, 3), (1.5, 3)) == [2]
    assert rows_said(*[(1.5, 3)] * 120) == [1, 1 + ROWS_BETWEEN_WARNINGS, 1 + 2 * ROWS_BETWEEN_WARNINGS]
