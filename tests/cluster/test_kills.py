"""kill -9 of one rank at each moment of a step and of a commit: the same command goes on as if nothing had been."""

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster.whole import EVERY, KEEP, RECIPE, check_it_is_the_whole, faulty, uncommitted, verified_steps
from support import Launcher, train_arguments

from dist_diffusion.errors import PLEASE_REQUEUE
from dist_diffusion.runs import verdict

# Each is a chain of launches.
pytestmark = pytest.mark.timeout(600)

LEAVE_S = 20
"""In which the survivors and the launcher must have ended; on a machine with too few cores."""


@dataclass(frozen=True)
class Kill:
    """Where a launch ends."""

    moment: str
    rank: int
    calls: str
    leaves_a_folder: bool = False
    """Without a marker, for the next start to remove."""


# Before the first step of a run, the dry run makes a checkpoint. All other launches get past one commit, to the next.
IN_THE_DRY_RUN = Kill("kill-before-exports", 0, "1")
RANK_0 = [
    IN_THE_DRY_RUN,
    Kill("kill-in-backward", 0, "7"),
    Kill("kill-before-snapshot", 0, "2"),
    Kill("kill-in-slices", 0, "2", leaves_a_folder=True),
    Kill("kill-before-exports", 0, "2", leaves_a_folder=True),
    Kill("kill-after-marker", 0, "2"),
    Kill("kill-in-prune", 0, "2", leaves_a_folder=True),
]
RANK_1 = [
    Kill("kill-in-backward", 1, "7"),
    Kill("kill-before-snapshot", 1, "2"),
    Kill("kill-in-slices", 1, "2", leaves_a_folder=True),
    Kill("kill-after-share", 1, "2"),
]


@pytest.mark.parametrize("kills", [RANK_0, RANK_1], ids=["rank-0", "rank-1"])
def test_a_run_killed_again_and_again_is_the_run_that_was_not(
    kills: list[Kill],
    launcher: Launcher,
    workplace: Path,
    whole: Path,
) -> None:
    rank = kills[0].rank
    run_dir, copy = workplace / f"killed-{rank}", workplace / f"copied-{rank}"
    command = [*train_arguments(workplace, run_dir.name), *RECIPE]
    before: list[int] = []
    leftovers: list[Path] = []
    for kill in kills:
        process = launcher.start(2, *command, program=faulty(kill.moment, kill.rank, kill.calls))
        out, err = process.communicate()
        ended = time.time()
        check_the_end(kill, process.returncode, ended, err, run_dir)
        check_the_start(before, leftovers, out)
        after = verified_steps(run_dir)
        lost = [step for step in before if step not in after]
        assert all(sum(step > old for step in after) >= KEEP for old in lost), f"{kill}: {before} became {after}"
        if kill != IN_THE_DRY_RUN:
            assert max(after, default=0) >= max(before, default=0) + EVERY, f"{kill}: {before} became {after}"
        before, leftovers = after, uncommitted(run_dir)
        assert leftovers or not kill.leaves_a_folder, f"{kill} was not at that moment: nothing is left of it"
    shutil.copytree(run_dir, copy)
    out, _ = launcher.run(2, *command)
    check_the_start(before, leftovers, out)
    check_it_is_the_whole(run_dir, whole)
    assert (run_dir / "metrics.stale.jsonl").exists(), "steps were to be lost and done again"
    if rank == 0:
        # It was copied with the lease of a process that is gone: nobody works there.
        out, _ = launcher.run(2, *command, f"run_dir={copy}")
        assert "is gone; taking its lease over" in out
        check_it_is_the_whole(copy, whole)


def check_the_end(kill: Kill, code: int, ended: float, err: str, run_dir: Path) -> None:
    """The others left within seconds, with nothing to say but that a peer is lost."""
    found = re.search(r"killed at ([\d.]+)", err)
    assert found is not None and code != 0, f"{kill} did not happen\n{err}"
    assert ended - float(found[1]) < LEAVE_S, kill
    said = verdict.read(str(run_dir / "exit.json"))
    assert said is None or (said.code == PLEASE_REQUEUE and said.is_peer_lost), f"{kill}: {said}"


def check_the_start(before: list[int], leftovers: list[Path], out: str) -> None:
    """It went on from the newest commit, and has said what it removed."""
    assert ("resuming at step " if before else "no committed checkpoint: starting at step 0") in out
    if before:
        assert f"resuming at step {before[-1]} from" in out
    for path in leftovers:
        assert f"removed {path}, which was never committed" in out and not path.exists()
