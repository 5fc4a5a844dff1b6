"""How fast the ranks of a run are, what they wait for, and which one the others wait for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SLOW = 1.1
"""A rank whose own time is this many times the ranks' mean holds the others up."""
ROWS_BETWEEN_WARNINGS = 50


@dataclass(frozen=True)
class Interval:
    """What the steps since the last row were on one rank."""

    host: str
    steps: int
    seconds: float
    """Wall clock."""
    data_wait_s: float
    forward_s: float
    peak_memory: int
    """Bytes."""

    @property
    def own_s(self) -> float:
        """What does not depend on other ranks: in all else they wait for each other and take equally long."""
        return self.data_wait_s + self.forward_s


@dataclass(frozen=True)
class Spread:
    """The slowest rank's own time over the mean of all ranks'."""

    ratio: float
    rank: int
    host: str

    @property
    def is_wide(self) -> bool:
        """Whether one rank holds the others up."""
        return self.ratio > SLOW

    def __str__(self) -> str:
        return (
            f"rank {self.rank} on {self.host} is the slowest: {self.ratio:.2f} times the ranks' mean time for waiting "
            "for data and forward passes"
        )


def spread(intervals: Sequence[Interval]) -> Spread:
    """Of all ranks' intervals, in order of rank."""
    own = [interval.own_s for interval in intervals]
    slowest = own.index(max(own))
    return Spread(own[slowest] * len(own) / sum(own), slowest, intervals[slowest].host)


def columns(intervals: Sequence[Interval], flops_per_step: float, peak_tflops: float | None) -> dict[str, Any]:
    """A row's account of them, in order of rank; `flops_per_step` are one rank's, `peak_tflops` of its device."""
    steps, seconds = intervals[0].steps, sum(interval.seconds for interval in intervals)
    slowest = spread(intervals)
    tflops = flops_per_step * steps * len(intervals) / seconds / 1e12
    return {
        "step_s": _short(seconds / len(intervals) / steps),
        "data_wait_share": _short(sum(interval.data_wait_s for interval in intervals) / seconds),
        "forward_s": _short(sum(interval.forward_s for interval in intervals) / len(intervals) / steps),
        "step_time_spread": _short(slowest.ratio),
        **({"slowest_rank": slowest.rank, "slowest_host": slowest.host} if slowest.is_wide else {}),
        "peak_memory_gib": _short(max(interval.peak_memory for interval in intervals) / 2**30),
        "tflops_per_s": _short(tflops),
        "mfu": None if peak_tflops is None else _short(tflops / peak_tflops),
    }


class SlowRankWarning:
    """When to name a slow rank: slow in two rows running, and not again for many rows. Chance slows any rank once."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._silent_rows = 0

    def is_due(self, found: Spread) -> bool:
        """Once a row, with that row's spread."""
        again = found.is_wide and found.rank == self._last
        self._last = found.rank if found.is_wide else None
        self._silent_rows -= 1
        if not again or self._silent_rows > 0:
            return False
        self._silent_rows = ROWS_BETWEEN_WARNINGS
        return True


def _short(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
