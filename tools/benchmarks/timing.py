"""Alternating measurements and their table."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

Measured = TypeVar("Measured")

MIN_ROUNDS = 3
MAX_ROUNDS = 50
WARM_UP_S, WINDOW_S = 0.5, 1.5
"""Of what runs on by itself: how long it is let run, and then how long it is measured."""


@dataclass(frozen=True)
class Row:
    """Ours against the peer: medians, slowest and fastest; in images a second where the unit says nothing else."""

    name: str
    ours: float
    peer: float
    ours_spread: tuple[float, float]
    peer_spread: tuple[float, float]
    unit: str = "img/s"
    less_is_better: bool = False

    @property
    def ratio(self) -> float:
        """Above 1 where ours is better."""
        return self.peer / self.ours if self.less_is_better else self.ours / self.peer

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "unit": self.unit,
            "ratio": self.ratio,
            "ours_spread": self.ours_spread,
            "peer_spread": self.peer_spread,
        }


def alternate(candidates: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call: every candidate once a round, in changing order, after one round that is not counted.

    The order changes because what one leaves behind (caches, freed memory) is what the next one finds.
    """
    return alternate_measured({name: partial(_seconds_of, call) for name, call in candidates.items()}, seconds)


def alternate_measured(
    candidates: Mapping[str, Callable[[], Measured]], seconds: float, agree: Callable[[bool], bool] = bool
) -> dict[str, list[Measured]]:
    """As `alternate`, of calls that return what they measured of themselves; ranks `agree` on when the time is up."""
    order, random_order = list(candidates), random.Random(0)
    taken: dict[str, list[Measured]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    end = time.perf_counter() + seconds
    for round_ in range(MAX_ROUNDS):
        if round_ >= MIN_ROUNDS and agree(time.perf_counter() > end):
            break
        random_order.shuffle(order)
        for name in order:
            taken[name].append(candidates[name]())
    return taken


def seconds_an_image(batches: Iterator[object], batch: int) -> float:
    """Of a loader that runs on: taken without a pause, once its processes are up."""
    next(batches)
    warm = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < warm:
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + WINDOW_S:
        next(batches)
        count += batch
    return (time.perf_counter() - start) / count


def _seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compared(name: str, batch: int, ours: list[float], peer: list[float]) -> Row:
    """A row in images a second from the seconds of calls over `batch` images."""

    def rates(taken: list[float]) -> tuple[float, tuple[float, float]]:
        return batch / statistics.median(taken), (batch / max(taken), batch / min(taken))

    (mine, my_spread), (theirs, their_spread) = rates(ours), rates(peer)
    return Row(name, mine, theirs, my_spread, their_spread)


def table(rows: list[Row]) -> str:
    """A line a row: medians and, in brackets, slowest and fastest."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'':{width}}{'ours':>26}{'peer':>26}  unit   ratio"]
    for row in rows:
        mine, theirs = (
            f"{median:.0f} [{low:.0f}, {high:.0f}]" if median >= 1000 else f"{median:.2f} [{low:.1f}, {high:.1f}]"
            for median, (low, high) in ((row.ours, row.ours_spread), (row.peer, row.peer_spread))
        )
        lines.append(f"{row.name:{width}}{mine:>26}{theirs:>26}  {row.unit}  {row.ratio:.2f}")
    return "\n".join(lines)
