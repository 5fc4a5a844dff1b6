"""A run of two ranks that is killed at seeded random moments, until it is done: the run that was not.

Each round takes a launch. SOAK_ROUNDS sets how many there are, SOAK_SEED which.
"""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cluster.whole import RECIPE, check_it_is_the_whole, train_whole, verified_steps
from support import Launcher, descendants, train_arguments, wait_until

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
MOST_STEPS = 12
"""Of one round."""


@pytest.mark.timeout(ROUNDS * 60 + 300)
def test_killed_at_random_moments(launcher: Launcher, workplace: Path) -> None:
    steps = f"train.steps={ROUNDS * (MOST_STEPS + 8)}"
    whole = train_whole(launcher, workplace, steps)
    command, draws = [*train_arguments(workplace, "soaked"), *RECIPE, steps], random.Random(SEED)
    run_dir = workplace / "soaked"
    newest = 0
    for number in range(ROUNDS):
        moment = one_round(launcher, command, run_dir, draws)
        found = max(verified_steps(run_dir), default=0)
        print(f"round {number + 1} of {ROUNDS}: {moment}; the newest commit is of step {found}", flush=True)
        assert found >= newest, "a commit is lost"
        newest = found
    launcher.run(2, *command)
    check_it_is_the_whole(run_dir, whole)


def one_round(launcher: Launcher, command: list[str], run_dir: Path, draws: random.Random) -> str:
    """Starts the run and kills one rank or all processes, while it starts or some steps on; says when."""
    log = run_dir / "logs" / "rank-0.log"
    before = num_steps(log)
    process = launcher.start(2, *command)
    try:
        if draws.random() < 0.25:
            moment = f"{(delay := draws.uniform(0, 8)):.2f} s after the start"
        else:
            steps, delay = draws.randrange(MOST_STEPS), draws.uniform(0, 0.3)
            moment = f"{delay:.2f} s after {steps} steps"
            wait_until(lambda: num_steps(log) - before >= steps, f"{steps} steps")
        time.sleep(delay)
        victims = victims_of(process.pid, draws.choice(["rank 0", "rank 1", "all"]))
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0, "the run was done before it was killed"
    finally:
        process.kill()
    return f"{len(victims)} processes, {moment}"


def victims_of(launch: int, which: str) -> list[int]:
    """One rank, or all that the launch has started; that too while there are no ranks yet."""
    below = descendants(launch)
    ranks = [pid for pid in below if is_rank(pid)]
    if which == "all" or not ranks:
        return below or [launch]
    return [min(ranks) if which == "rank 0" else max(ranks)]


def is_rank(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return b"OMPI_COMM_WORLD_RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def num_steps(log: Path) -> int:
    return len(re.findall(r": step \d+/", log.read_text())) if log.exists() else 0
