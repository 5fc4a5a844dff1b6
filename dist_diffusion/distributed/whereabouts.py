"""Where each rank is, and which of them the others wait for."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

Phase = Literal["start", "first_step", "step", "save", "preview"]

_MOST_NAMED = 8
"""Hosts told apart in one message."""


class Spot(NamedTuple):
    """A place in the run. `stage` is a part of the phase, None at its beginning."""

    phase: Phase
    step: int | None
    stage: str | None
    moves: int
    """Changes since this step was entered: they order ranks within it, for all ranks make the same ones."""
    since: float
    """When the phase was entered, in seconds of this process's monotonic clock."""

    @property
    def progress(self) -> tuple[int, int]:
        """Larger further on."""
        return (-1 if self.step is None else self.step, self.moves)

    def __str__(self) -> str:
        name = repr(self.stage or self.phase)
        if self.step is not None:
            return f"{name} of step {self.step}"
        return f"{name} of {self.phase}" if self.stage else name


class Whereabouts:
    """Where this rank is. The main thread alone writes it, as all ranks do alike; other threads read `spot`.

    A change is one assignment of a whole Spot, so that nobody reads half of one, and takes under a microsecond.
    """

    def __init__(self) -> None:
        self.spot = Spot("start", None, None, 0, time.monotonic())

    def enter(self, phase: Phase, step: int | None) -> None:
        """Begins a phase, and its limit anew."""
        before = self.spot
        moves = before.moves + 1 if step == before.step else 0
        self.spot = Spot(phase, step, None, moves, time.monotonic())

    def at(self, stage: str) -> None:
        """Says which part of the phase this is; the phase's limit runs on."""
        spot = self.spot
        self.spot = Spot(spot.phase, spot.step, stage, spot.moves + 1, spot.since)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A phase within another, which goes on afterwards where it was, its limit begun anew."""
        before = self.spot
        self.enter(phase, before.step)
        try:
            yield
        finally:
            self.spot = before._replace(moves=self.spot.moves + 1, since=time.monotonic())


@dataclass(frozen=True)
class Seen:
    """A rank as another one sees it. `silent_s`: how long its posts have stood still, by the watcher's clock."""

    host: str
    spot: Spot
    silent_s: float


def blame(ranks: Sequence[Seen | None], still_s: float) -> str:
    """Who keeps the others waiting. None is a rank that was never heard of.

    Those whose posts have stood still for over `still_s` are stopped or gone. Where all are alive, it is those that
    are least far on; where all are at one place, they wait there for each other.
    """
    if len(ranks) == 1 and ranks[0] is not None:
        return f"the process is at {ranks[0].spot}"
    alive = {rank: seen for rank, seen in enumerate(ranks) if seen is not None and seen.silent_s <= still_s}
    silent = {rank: seen for rank, seen in enumerate(ranks) if rank not in alive}
    if silent:
        give = "gives" if len(silent) == 1 else "give"
        return f"{_named(silent, with_place=True)} {give} no sign of life{_others(alive, 'are')}"
    least = min(seen.spot.progress for seen in alive.values())
    behind = {rank: seen for rank, seen in alive.items() if seen.spot.progress == least}
    ahead = {rank: seen for rank, seen in alive.items() if rank not in behind}
    if not ahead:
        return f"all {len(ranks)} ranks wait at {_places(behind)}"
    return f"{_named(behind)} {'is' if len(behind) == 1 else 'are'} at {_places(behind)}{_others(ahead, 'wait')}"


def _others(ranks: Mapping[int, Seen], verb: str) -> str:
    if not ranks:
        return ""
    if len(ranks) == 1:
        singular = {"are": "is", "wait": "waits"}[verb]
        return f", the other {singular} at {_places(ranks)}"
    return f", the other {len(ranks)} {verb} at {_places(ranks)}"


def _places(ranks: Mapping[int, Seen]) -> str:
    return " or ".join(sorted({str(seen.spot) for seen in ranks.values()}))


def _named(ranks: Mapping[int, Seen | None], with_place: bool = False) -> str:
    """The ranks by host, and where each was seen last."""
    groups: dict[str, list[int]] = {}
    for rank, seen in ranks.items():
        where = ", never heard of," if seen is None else f" on {seen.host}"
        last = f", last at {seen.spot}," if with_place and seen is not None else ""
        groups.setdefault(where + last, []).append(rank)
    parts = [f"{_ranges(numbers)}{where}" for where, numbers in groups.items()]
    more = len(parts) - _MOST_NAMED
    return " and ".join(parts[:_MOST_NAMED] + ([f"{more} groups more"] if more > 0 else []))


def _ranges(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0-3, 6"; of ascending ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    listed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {listed}"
