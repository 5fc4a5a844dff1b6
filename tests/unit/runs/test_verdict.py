import threading
from dataclasses import replace

import pytest

from dist_diffusion.errors import BUG, DONE, PLEASE_REQUEUE, USER_ERROR, StorageError
from dist_diffusion.runs import verdict
from dist_diffusion.runs.verdict import Verdict

PEER_LOST = Verdict(PLEASE_REQUEUE, "peer lost: connection closed by rank 1", 0, 7, "12.0", log="logs/rank-0.log")
BUGGY = Verdict(BUG, "ZeroDivisionError", 1, 7, "12.0")
STOPPED = Verdict(PLEASE_REQUEUE, "stopped by SIGUSR2", 2, 7, "12.0")


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({}, "local"),
        ({"SLURM_JOB_ID": "6", "SLURM_PROCID": "1"}, "6.0"),
        ({"SLURM_JOB_ID": "6", "SLURM_RESTART_COUNT": "2"}, "6.2"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}, "7_3.0"),
    ],
)
def test_launch_id(env, name):
    assert verdict.launch_id(env) == name


def test_a_verdict_is_read_back_and_cleared(tmp_path):
    path = str(tmp_path / "run" / "exit.json")
    assert verdict.read(path) is None
    assert verdict.record(path, PEER_LOST)
    assert verdict.read(path) == PEER_LOST
    verdict.clear(path)
    assert verdict.read(path) is None
    verdict.clear(path)


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        (BUGGY, replace(BUGGY, rank=2, reason="another"), BUGGY),
        (BUGGY, PEER_LOST, BUGGY),
        (BUGGY, replace(BUGGY, code=DONE), BUGGY),
        (PEER_LOST, replace(PEER_LOST, rank=3), PEER_LOST),
        (PEER_LOST, replace(BUGGY, code=DONE), PEER_LOST),
        (PEER_LOST, BUGGY, BUGGY),
        (PEER_LOST, STOPPED, STOPPED),
        (STOPPED, BUGGY, STOPPED),
        (replace(BUGGY, launch_id="11.0"), PEER_LOST, PEER_LOST),
    ],
)
def test_which_verdict_stands(tmp_path, first, second, stands):
    path = str(tmp_path / "exit.json")
    assert verdict.record(path, first)
    assert verdict.record(path, second) is (stands is second)
    assert verdict.read(path) == stands


def test_the_peers_own_error_stands_in_whichever_order_ranks_report(tmp_path):
    for attempt in range(20):
        path = str(tmp_path / f"{attempt}.json")
        verdicts = [replace(PEER_LOST, rank=rank) for rank in (0, 2, 3)] + [replace(BUGGY, code=USER_ERROR)]
        threads = [threading.Thread(target=verdict.record, args=(path, each)) for each in verdicts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert verdict.read(path) == verdicts[-1]


def test_a_foreign_file_is_named(tmp_path):
    (tmp_path / "exit.json").write_text('{"status": 1}')
    with pytest.raises(StorageError, match=r"exit\.json is not a verdict"):
        verdict.read(str(tmp_path / "exit.json"))
