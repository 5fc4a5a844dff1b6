"""Alternating measurements and their table."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MIN_ROUNDS = 3
MAX_ROUNDS = 50


@dataclass(frozen=True)
class Row:
    """Ours against the peer in images a second: medians, slowest and fastest."""

    name: str
    ours: float
    peer: float
    ours_spread: tuple[float, float]
    peer_spread: tuple[float, float]
    unit: str = "img/s"

    @property
    def ratio(self) -> float:
        """Above 1 where ours is better."""
        return self.ours / self.peer

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
    order, random_order = list(candidates), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        call()
    end = time.perf_counter() + seconds
    for round_ in range(MAX_ROUNDS):
        if round_ >= MIN_ROUNDS and time.perf_counter() > end:
            break
        random_order.shuffle(order)
        for name in order:
            start = time.perf_counter()
            candidates[name]()
            taken[name].append(time.perf_counter() - start)
    return taken


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
            f"{median:.2f} [{low:.1f}, {high:.1f}]"
            for median, (low, high) in ((row.ours, row.ours_spread), (row.peer, row.peer_spread))
        )
        lines.append(f"{row.name:{width}}{mine:>26}{theirs:>26}  {row.unit}  {row.ratio:.2f}")
    return "\n".join(lines)
