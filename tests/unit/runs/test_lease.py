import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from dist_diffusion.errors import RunInUseError
from dist_diffusion.runs import lease
from dist_diffusion.runs.lease import Owner

HOLD = """
import os, sys, time
from dist_diffusion.runs import lease
held = lease.acquire(sys.argv[1], lease.Owner.of_this_process(os.environ), print, beat_s=0.05)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run" / "lease.json")


@pytest.fixture
def said():
    return []


@pytest.fixture
def owner():
    return Owner.of_this_process({"SLURM_JOB_ID": "12"})


@pytest.fixture
def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def forge(path, owner, counter=0, token="forged"):
    """Another owner's lease file, written as its heartbeat would: atomically."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".forging", "w") as stream:
        json.dump({"owner": asdict(owner), "token": token, "counter": counter}, stream)
    os.replace(path + ".forging", path)


def wait_until(condition, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.01)


def read(path):
    with open(path) as stream:
        return json.load(stream)


def test_a_free_lease_is_held_counted_up_and_removed(path, said, owner):
    with lease.acquire(path, owner, said.append, beat_s=0.02) as held:
        assert Owner(**read(path)["owner"]) == owner
        wait_until(lambda: read(path)["counter"] >= 3)
        assert not held.lost
    assert os.listdir(os.path.dirname(path)) == []
    assert said == []


def test_a_live_owner_is_left_alone_and_named(path, said, owner, holder):
    start = time.monotonic()
    with pytest.raises(RunInUseError) as caught:
        lease.acquire(path, owner, said.append, ttl_s=60)
    assert time.monotonic() - start < 20
    for part in (os.path.dirname(path), owner.host, f"process {holder.pid}", "choose another directory"):
        assert part in str(caught.value)
    assert read(path)["owner"]["pid"] == holder.pid


@pytest.mark.parametrize("reaped", [False, True])
def test_a_killed_owner_is_replaced_at_once(path, said, owner, holder, reaped):
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    start = time.monotonic()
    with lease.acquire(path, owner, said.append, ttl_s=60, beat_s=0.05):
        assert time.monotonic() - start < 20
        assert read(path)["owner"]["pid"] == os.getpid()
    (line,) = said
    assert f"process {holder.pid} on {owner.host} is gone; taking its lease over" in line


def test_who_counts_as_dead(owner):
    assert not owner.is_dead_for(owner)
    reused_id = replace(owner, start_time=owner.start_time - 1)
    other_boot = replace(owner, boot_id="another")
    assert reused_id.is_dead_for(owner) and other_boot.is_dead_for(owner)
    for unknown in (
        replace(reused_id, host="another"),
        replace(other_boot, host="another"),
        replace(reused_id, pid_namespace="pid:[1]"),
        replace(reused_id, boot_id=""),
    ):
        assert not unknown.is_dead_for(owner)


def test_a_counter_of_another_host_that_stands_still_is_taken_over_after_the_ttl(path, said, owner):
    forge(path, replace(owner, host="faraway", job="99"), counter=5)
    start = time.monotonic()
    with lease.acquire(path, owner, said.append, ttl_s=0.5, beat_s=0.05):
        assert time.monotonic() - start >= 0.5
        assert read(path)["owner"]["host"] == owner.host
    assert "held by process" in said[0] and "faraway, job 99" in said[0]
    assert "no sign of life for 0.5 s" in said[1]


def test_a_copied_directory_is_taken_after_the_ttl_and_its_origin_is_left_alone(path, said, owner, holder, tmp_path):
    """The copy names an owner that lives, but nobody counts up there."""
    copy = shutil.copytree(os.path.dirname(path), tmp_path / "copy")
    with lease.acquire(str(copy / "lease.json"), owner, said.append, ttl_s=0.5, beat_s=0.05):
        assert read(copy / "lease.json")["owner"]["pid"] == os.getpid()
        assert read(path)["owner"]["pid"] == holder.pid
    assert f"held by process {holder.pid} on {owner.host}" in said[0] and "no sign of life for 0.5 s" in said[1]


def test_a_counter_of_another_host_that_moves_is_an_error(path, said, owner):
    faraway = replace(owner, host="faraway", job="99")
    forge(path, faraway, counter=5)
    done = threading.Event()

    def count_up():
        counter = 6
        while not done.wait(0.2):
            forge(path, faraway, counter)
            counter += 1

    moving = threading.Thread(target=count_up)
    moving.start()
    try:
        with pytest.raises(RunInUseError, match=f"process {owner.pid} on faraway, job 99"):
            lease.acquire(path, owner, said.append, ttl_s=30)
    finally:
        done.set()
        moving.join()


def test_a_lease_released_while_it_is_watched_is_taken(path, said, owner):
    forge(path, replace(owner, host="faraway"))
    leaving = threading.Timer(0.2, os.remove, args=(path,))
    leaving.start()
    with lease.acquire(path, owner, said.append, ttl_s=30) as held:
        assert read(path)["owner"]["host"] == owner.host and not held.lost
    leaving.join()


def test_a_lease_that_another_process_overwrites_is_lost_and_not_removed(path, said, owner):
    held = lease.acquire(path, owner, said.append, beat_s=0.02)
    forge(path, replace(owner, host="faraway"), token="theirs")
    wait_until(lambda: held.lost)
    held.release()
    assert read(path)["token"] == "theirs"


def test_of_two_that_take_over_one_gives_way(path, said, owner, monkeypatch):
    forge(path, replace(owner, start_time=owner.start_time - 1))
    # The other writes while this one waits to confirm.
    monkeypatch.setattr(time, "sleep", lambda seconds: forge(path, replace(owner, host="faraway"), token="theirs"))
    with pytest.raises(RunInUseError, match="another process took the lease over at the same moment"):
        lease.acquire(path, owner, said.append)
    assert read(path)["token"] == "theirs"


def test_a_heartbeat_that_cannot_write_says_so_once_and_goes_on(path, said, owner, monkeypatch):
    held = lease.acquire(path, owner, said.append, beat_s=0.02)
    real = os.replace

    def full(source, destination):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    wait_until(lambda: said)
    time.sleep(0.1)
    monkeypatch.setattr(os, "replace", real)
    counter = read(path)["counter"]
    wait_until(lambda: read(path)["counter"] > counter)
    held.release()
    assert len(said) == 1 and "No space left on device" in said[0]
    assert not held.lost
