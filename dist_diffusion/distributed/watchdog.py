"""Ends a rank that makes no progress, after it has said where every rank was and what its threads were doing.

No collective is used: those are what hangs. The limit of a phase is counted from its entry by this process alone; the
first rank to reach one raises an alarm, at which the others end too, so that each leaves its stacks.
"""

import faulthandler
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from dist_diffusion.distributed.heartbeats import Heartbeats, Rhythm
from dist_diffusion.distributed.whereabouts import Phase, Seen, Spot, Whereabouts, blame
from dist_diffusion.errors import PLEASE_REQUEUE

_STDERR = 2


class Watchdog:
    """Watches one rank's whereabouts from a thread, from `start` to `stop`.

    `on_expiry` is told the reason once, to leave a verdict; the stacks go to stderr and to the end of `log_path`.
    A store of the rendezvous that is lost is told by `say_error`, and ends nothing. A world of one uses none.
    """

    def __init__(
        self,
        where: Whereabouts,
        limits: Mapping[Phase, float],
        rank: int,
        world_size: int,
        say_error: Callable[[str], None],
        on_expiry: Callable[[str], None],
        log_path: str,
        rhythm: Rhythm = Rhythm(),  # noqa: B008 (frozen)
    ) -> None:
        self._where, self._limits, self._rank, self._rhythm = where, limits, rank, rhythm
        self._say_error, self._on_expiry, self._log_path = say_error, on_expiry, log_path
        self._beats = Heartbeats(where, rank, world_size, say_error, rhythm) if world_size > 1 else None
        self._armed = -float("inf")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Once the process group is there and the log may be written. The limit of the present phase begins now."""
        spot = self._where.spot
        self._where.enter(spot.phase, spot.step)
        self._arm(self._limits[spot.phase])
        if self._beats is not None:
            self._beats.start()
        self._thread.start()

    def stop(self) -> None:
        """Watches no more. Where a limit has just been reached, it does not return: the process ends."""
        self._ended.set()
        self._thread.join()
        if self._beats is not None:
            self._beats.stop()

    def _watch(self) -> None:
        try:
            while not self._ended.wait(self._rhythm.look_s):
                self._look()
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        spot = self._where.spot
        limit = self._limits[spot.phase]
        left = limit - (time.monotonic() - spot.since)
        self._arm(left)
        if self._beats is not None:
            # Early enough to see who moves, late enough that a healthy run is spared the reading.
            self._beats.listening = left < max(limit / 2, 2 * self._rhythm.still_s)
            if self._beats.alarm is not None:
                self._expire(self._beats.alarm)
        if left < 0:
            key = f"watchdog.{spot.phase}_s"
            self._expire(f"no progress for {limit:g} s in phase {spot.phase} ({key}): {self._who(spot)}")

    def _arm(self, left: float) -> None:
        """For a hang that holds the interpreter's lock: faulthandler's own thread ends the process, with code 1.

        It writes to stderr alone: a log on a file system that hangs would keep it from ending.
        """
        now = time.monotonic()
        if now - self._armed >= self._rhythm.post_s:
            faulthandler.dump_traceback_later(max(left, 0.0) + self._rhythm.grace_s, exit=True, file=_STDERR)
            self._armed = now

    def _who(self, spot: Spot) -> str:
        if self._beats is None:
            return blame([Seen(socket.gethostname(), spot, 0.0)], self._rhythm.still_s)
        if self._beats.unanswered_s > self._rhythm.still_s:
            return (
                f"the rendezvous at {os.environ['MASTER_ADDR']} does not answer: rank 0, or its host, is stopped or "
                f"gone; rank {self._rank} on {socket.gethostname()} waits at {spot}"
            )
        return blame(self._beats.seen(), self._rhythm.still_s)

    def _expire(self, reason: str) -> None:
        begun = time.monotonic()
        try:
            if self._beats is not None:
                self._beats.raise_alarm(reason)
            told = (lambda: self._on_expiry(reason), lambda: self._say_error(reason), self._leave_stacks)
            _attempt(told, self._rhythm.last_words_s)
            if self._beats is not None:
                time.sleep(max(0.0, self._rhythm.linger_s - (time.monotonic() - begun)))
        finally:
            os._exit(PLEASE_REQUEUE)

    def _leave_stacks(self) -> None:
        stacks = all_stacks(f"stacks of all threads of rank {self._rank} on {socket.gethostname()}\n")
        left = (lambda: _append(_STDERR, stacks), lambda: _append(self._log_path, stacks))
        _attempt(left, self._rhythm.last_words_s)


def all_stacks(head: str) -> str:
    """The Python stacks of all threads, by way of a local file: the dump holds the interpreter's lock while it writes,
    which a pipe or a shared file system could draw out for ever.
    """
    with tempfile.TemporaryFile() as file:
        file.write(head.encode())
        file.flush()
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read().decode(errors="backslashreplace")


def _append(path: str | int, text: str) -> None:
    if path == _STDERR:
        sys.stderr.flush()
    with open(path, "a", encoding="utf-8", closefd=path != _STDERR) as stream:
        stream.write(text)


def _attempt(works: Sequence[Callable[[], None]], limit_s: float) -> None:
    """Does them beside each other: any may hang, for what hangs the run may be the disk or a lock that it needs."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    end = time.monotonic() + limit_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
