"""How a run that is done waits for its mirror."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.errors import DONE, DistDiffusionError, StoppedError, StorageError
from dist_diffusion.observe.console import Console
from dist_diffusion.runs import verdict
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.training.place import Place
from dist_diffusion.training.run import conclude


class Mirror:
    """Behind for the first `rounds` questions after a request; says at each request whether there is a verdict."""

    def __init__(self, rounds: int, error: str | None, verdict: str) -> None:
        self.rounds, self.error, self.verdict, self.left = rounds, error, verdict, 0
        self.had_verdict: list[bool] = []

    def request(self) -> None:
        self.left = self.rounds
        self.had_verdict.append(os.path.exists(self.verdict))

    @property
    def is_behind(self) -> bool:
        self.left -= 1
        assert not os.path.exists(self.verdict), "done, says the verdict, and the mirror is not"
        return self.left >= 0

    def finish(self, timeout_s: float) -> None:
        self.finished_within = timeout_s


@pytest.fixture
def place(tmp_path: Path, group: Group) -> Place:
    return Place(RunDir(str(tmp_path)), group, Console(None, 0), "launch", 1, Whereabouts())


def done(place: Place, mirror: Mirror, stopped: bool = False) -> Any:
    """A run at its end."""
    return SimpleNamespace(
        step=7,
        group=place.group,
        console=place.console,
        recipe=SimpleNamespace(checkpoint=SimpleNamespace(mirror="s3://bucket/run")),
        observer=SimpleNamespace(close=lambda: None),
        mirror=mirror,
        stop=SimpleNamespace(requested=stopped),
    )


def test_the_verdict_comes_when_the_mirror_has_all_else(place: Place) -> None:
    mirror = Mirror(3, None, place.run_dir.verdict)
    conclude(done(place, mirror), place)
    said = verdict.read(place.run_dir.verdict)
    assert said is not None and (said.code, said.step) == (DONE, 7)
    assert mirror.had_verdict == [False, True] and mirror.finished_within < 60


@pytest.mark.parametrize(
    ("rounds", "error", "stopped", "raised"),
    [(10**9, None, True, StoppedError), (2, "no connection", False, StorageError)],
)
def test_a_stop_and_a_store_that_is_away_end_it_alike_in_all_ranks_and_without_a_verdict(
    place: Place, rounds: int, error: str | None, stopped: bool, raised: type[DistDiffusionError]
) -> None:
    run = done(place, Mirror(rounds, error, place.run_dir.verdict), stopped)
    with pytest.raises(raised, match="the run is done, its mirror is behind") as got:
        conclude(run, place)
    assert got.value.agreed and verdict.read(place.run_dir.verdict) is None
