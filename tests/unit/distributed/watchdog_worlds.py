"""Worlds of ranks that hang, each in its own way, beside each other: `watchdog_worlds.py FOLDER`.

Each rank works in FOLDER/CASE/RANK and leaves its output, log, verdict and exit code there.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed as dist

from dist_diffusion.distributed.heartbeats import Rhythm
from dist_diffusion.distributed.watchdog import Watchdog
from dist_diffusion.distributed.whereabouts import Phase, Whereabouts

RHYTHM = Rhythm(look_s=0.1, post_s=0.3, still_s=1.5, grace_s=2.0, last_words_s=0.5, linger_s=1.0)
STEP_S = 3.0
LIMITS: dict[Phase, float] = {"start": 60.0, "first_step": 60.0, "step": STEP_S, "save": 60.0, "preview": 60.0}

Hang = Callable[[], None]


def wait_for_a_shard() -> None:
    time.sleep(60)


def hold_the_lock() -> None:
    time.sleep(2 * RHYTHM.post_s)
    ctypes.PyDLL(None).sleep(60)


def stop_here() -> None:
    time.sleep(2 * RHYTHM.post_s)
    os.kill(os.getpid(), signal.SIGSTOP)


def hang_at_data(where: Whereabouts, hang: Hang | None) -> None:
    take_step(where, 0, None)
    take_step(where, 1, hang)


def begin_slowly(where: Whereabouts, hang: Hang | None) -> None:
    time.sleep(5 * RHYTHM.look_s)
    take_step(where, 0, None)


def hang_in_a_save(where: Whereabouts, hang: Hang | None) -> None:
    """One that hangs in a phase of a longer limit: the others' alarm ends it."""
    if hang is not None:
        with where.during("save"):
            hang()
    take_step(where, 1, None)


def go_on(where: Whereabouts, hang: Hang | None) -> None:
    """For longer than the limit of a step, in steps that are shorter, and a preview, which has another."""
    for step in range(12):
        take_step(where, step, None)
        time.sleep(STEP_S / 10)
    with where.during("preview"):
        time.sleep(STEP_S * 1.2)
    where.at("agree")


def take_step(where: Whereabouts, step: int, hang: Hang | None) -> None:
    where.enter("step", step)
    where.at("data")
    if hang is not None:
        hang()
    where.at("backward")
    dist.all_reduce(torch.zeros(1))


class Case(NamedTuple):
    world_size: int
    work: Callable[[Whereabouts, Hang | None], None]
    hanging: int | None = None
    """The rank."""
    hang: Hang | None = None


CASES = {
    "data": Case(3, hang_at_data, 1, wait_for_a_shard),
    "stopped": Case(3, hang_at_data, 1, stop_here),
    "rank 0 stopped": Case(3, hang_at_data, 0, stop_here),
    "save": Case(2, hang_in_a_save, 1, wait_for_a_shard),
    "healthy": Case(2, go_on),
    "rank 0 leaves first": Case(2, go_on),
    "ended": Case(1, begin_slowly),
    "alone": Case(1, hang_at_data, 0, wait_for_a_shard),
    "no verdict": Case(1, hang_at_data, 0, wait_for_a_shard),
    "lock": Case(1, hang_at_data, 0, hold_the_lock),
}


def run(name: str, rank: int, port: int) -> None:
    """One rank, from the process group to its end."""
    case = CASES[name]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group(
        "gloo",
        init_method="env://",
        rank=rank,
        world_size=case.world_size,
        timeout=timedelta(seconds=60),
    )

    def leave_verdict(reason: str) -> None:
        if name == "no verdict":
            time.sleep(60)
        with open("verdict", "w") as file:
            file.write(reason)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    where = Whereabouts()
    # What came before the watch is not counted.
    where.spot = where.spot._replace(since=where.spot.since - 1000)
    watchdog = Watchdog(where, LIMITS, rank, case.world_size, say, leave_verdict, "log", RHYTHM)
    watchdog.start()
    case.work(where, case.hang if rank == case.hanging else None)
    if name == "rank 0 leaves first" and rank > 0:
        time.sleep(RHYTHM.still_s / 2)
    watchdog.stop()
    left = {thread.name for thread in threading.enumerate()} & {"watchdog", "heartbeats"}
    assert not left, left
    if name == "ended":
        # Longer than what ends a process whose threads cannot.
        time.sleep(STEP_S + RHYTHM.grace_s + 0.5)
    print("done", flush=True)
    os._exit(0)


def start(name: str, rank: int, port: int) -> int:
    """Forks a rank: torch is imported once for all."""
    folder = os.path.join(name, str(rank))
    os.makedirs(folder)
    pid = os.fork()
    if pid:
        return pid
    os.chdir(folder)
    for number, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    try:
        run(name, rank, port)
    except Exception:
        traceback.print_exc()
        # Where another rank has just ended, the watchdog is about to end this one.
        time.sleep(2 * RHYTHM.linger_s)
    finally:
        os._exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_stopped(case: Case, rank: int) -> bool:
    return case.hang is stop_here and case.hanging == rank


def main() -> None:
    os.chdir(sys.argv[1])
    started = {}
    for name, case in CASES.items():
        port = free_port()
        started |= {start(name, rank, port): (name, rank) for rank in range(case.world_size)}
    stopped = {pid for pid, (name, rank) in started.items() if is_stopped(CASES[name], rank)}
    running, end = set(started) - stopped, time.monotonic() + 40
    while running and time.monotonic() < end:
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                name, rank = started[pid]
                with open(os.path.join(name, str(rank), "code"), "w") as file:
                    file.write(str(os.waitstatus_to_exitcode(status)))
        time.sleep(0.01)
    for pid in running | stopped:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
