"""Hangs of real processes: each case is a world of its own, and all of them run beside each other from one script."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are stopped and forked as on Linux")


@dataclass(frozen=True)
class Ended:
    """What one rank left: `code` is None where the test had to end it."""

    code: int | None
    out: str
    err: str
    log: str
    verdict: str


class Worlds:
    """What the ranks of all cases left."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rank(self, case: str, rank: int) -> Ended:
        def read(name: str) -> str:
            path = self._folder / case / str(rank) / name
            return path.read_text() if path.exists() else ""

        code = read("code")
        return Ended(int(code) if code else None, read("out"), read("err"), read("log"), read("verdict"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    folder = tmp_path_factory.mktemp("worlds")
    script = Path(__file__).with_name("watchdog_worlds.py")
    subprocess.run([sys.executable, script, folder], check=True, timeout=60)
    return Worlds(folder)


def test_all_ranks_end_and_name_the_one_that_hangs(worlds: Worlds) -> None:
    for rank in range(3):
        ended = worlds.rank("data", rank)
        assert ended.code == 75, ended.err
        assert ended.verdict.startswith("no progress for 3 s in phase step (watchdog.step_s): rank 1 on ")
        assert ended.verdict.endswith(" is at 'data' of step 1, the other 2 wait at 'backward' of step 1")
        assert ended.verdict in ended.err
        assert f"stacks of all threads of rank {rank} on " in ended.log
        # Each says where it was itself.
        for text in (ended.log, ended.err):
            assert ("in wait_for_a_shard" in text) == (rank == 1)
            assert ("in all_reduce" in text) == (rank != 1)


def test_a_stopped_rank_is_named_by_the_others(worlds: Worlds) -> None:
    assert worlds.rank("stopped", 1).code is None
    for rank in (0, 2):
        ended = worlds.rank("stopped", rank)
        assert ended.code == 75, ended.err
        assert re.search(r"rank 1 on \S+, last at 'data' of step 1, gives no sign of life, the other 2", ended.verdict)
        assert "in all_reduce" in ended.log


def test_a_stopped_rank_0_takes_the_store_with_it(worlds: Worlds) -> None:
    assert worlds.rank("rank 0 stopped", 0).code is None
    for rank in (1, 2):
        ended = worlds.rank("rank 0 stopped", rank)
        assert ended.code == 75, ended.err
        assert "the rendezvous at 127.0.0.1 does not answer: rank 0, or its host, is stopped or gone" in ended.verdict
        assert f"rank {rank} on " in ended.verdict and "waits at 'backward' of step 1" in ended.verdict
        assert "in all_reduce" in ended.log


def test_an_alarm_ends_a_rank_before_its_own_limit(worlds: Worlds) -> None:
    first, other = worlds.rank("save", 0), worlds.rank("save", 1)
    assert (first.code, other.code) == (75, 75), other.err
    assert "rank 1 on " in first.verdict and "is at 'save', the other waits at 'backward' of step 1" in first.verdict
    assert other.verdict == first.verdict
    assert "in wait_for_a_shard" in other.log


@pytest.mark.parametrize(("case", "world_size"), [("healthy", 2), ("rank 0 leaves first", 2), ("ended", 1)])
def test_a_run_that_goes_on_is_left_in_peace(worlds: Worlds, case: str, world_size: int) -> None:
    for rank in range(world_size):
        ended = worlds.rank(case, rank)
        assert (ended.code, ended.out, ended.log, ended.verdict) == (0, "done\n", "", ""), ended.err
        assert "watchdog" not in ended.err and "stacks" not in ended.err


def test_a_single_process_needs_no_store(worlds: Worlds) -> None:
    ended = worlds.rank("alone", 0)
    assert ended.code == 75, ended.err
    assert ended.verdict.endswith("(watchdog.step_s): the process is at 'data' of step 1")
    assert "in wait_for_a_shard" in ended.log


def test_a_verdict_that_cannot_be_written_holds_nothing_up(worlds: Worlds) -> None:
    ended = worlds.rank("no verdict", 0)
    assert (ended.code, ended.verdict) == (75, "")
    assert "no progress for 3 s" in ended.err and "in wait_for_a_shard" in ended.log


def test_a_hang_that_holds_the_interpreter_ends_too(worlds: Worlds) -> None:
    ended = worlds.rank("lock", 0)
    assert (ended.code, ended.verdict) == (1, ""), ended.err
    assert "Timeout" in ended.err and "in hold_the_lock" in ended.err
