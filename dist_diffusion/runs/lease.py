"""Who works in a run directory: one owner, which counts up in a file for as long as it lives.

No clocks are compared: a lease whose counter stands still for `ttl_s` of the watcher's own time is dead.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from dist_diffusion.errors import RunInUseError, StorageError
from dist_diffusion.storage import files, publish

Say = Callable[[str], None]


@dataclass(frozen=True)
class Owner:
    """A process, told apart from a later one of the same id. Where there is no /proc, boot_id is empty."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_time: int
    """Of the process, in clock ticks since the boot."""
    job: str

    @classmethod
    def of_this_process(cls, env: Mapping[str, str]) -> "Owner":
        """The calling process; its SLURM job, if any, from the environment."""
        pid, job = os.getpid(), env.get("SLURM_JOB_ID", "")
        if sys.platform != "linux":
            return cls(socket.gethostname(), "", "", pid, 0, job)
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot_id = stream.read().strip()
        start_time = _start_time(pid)
        assert start_time is not None
        return cls(socket.gethostname(), boot_id, os.readlink("/proc/self/ns/pid"), pid, start_time, job)

    def is_dead_for(self, observer: "Owner") -> bool:
        """Whether the observer, on the same host, can tell for sure that this owner is gone."""
        if self.host != observer.host or not self.boot_id or not observer.boot_id:
            return False
        if self.boot_id != observer.boot_id:
            return True
        # In another process namespace of the same host its id means nothing here.
        return self.pid_namespace == observer.pid_namespace and _start_time(self.pid) != self.start_time

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"


class Lease:
    """A held lease: a thread counts up every `beat_s`. `lost` turns true when the file is no longer ours."""

    def __init__(self, path: str, owner: Owner, say: Say, beat_s: float) -> None:
        self.path = path
        self.lost = False
        self._owner = owner
        self._say = say
        self._beat_s = beat_s
        self._token = secrets.token_hex(8)
        self._counter = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def holds(self) -> bool:
        """Whether the file is ours at this moment: read anew, where `lost` is only as fresh as the last beat."""
        return not self.lost and self._is_ours()

    def release(self) -> None:
        """Stops counting and removes the file if it is still ours; a failure is said, for it must not hide another."""
        self._stop.set()
        self._thread.join()
        try:
            if self._is_ours():
                with files.failures("remove", self.path), suppress(FileNotFoundError):
                    os.remove(self.path)
        except StorageError as err:
            self._say(f"the lease could not be released: {err}")

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _claim(self) -> bool:
        return publish.create_exclusive(self.path, self._content())

    def _take_over(self) -> None:
        """Replaces a dead owner's file; of two takers the one that wrote last holds it."""
        publish.write_bytes(self.path, self._content())
        time.sleep(min(self._beat_s, 0.5))
        if not self._is_ours():
            raise RunInUseError(f"{self.path}: another process took the lease over at the same moment; let it run")

    def _start(self) -> "Lease":
        self._thread.start()
        return self

    def _content(self) -> bytes:
        content = {"owner": asdict(self._owner), "token": self._token, "counter": self._counter}
        return (json.dumps(content, indent=2) + "\n").encode()

    def _is_ours(self) -> bool:
        found = read(self.path)
        return found is not None and found["token"] == self._token

    def _beat(self) -> None:
        failing = False
        while not self._stop.wait(self._beat_s):
            try:
                if not self._is_ours():
                    self.lost = True
                    return
                self._counter += 1
                publish.write_bytes(self.path, self._content())
                failing = False
            except StorageError as err:
                if not failing:
                    self._say(f"the lease could not be renewed, trying on: {err}")
                failing = True


def acquire(path: str, owner: Owner, say: Say, ttl_s: float = 60.0, beat_s: float = 5.0) -> Lease:
    """Takes the lease at `path` (its folder is made); RunInUseError where another owner is alive.

    An owner on this host that is gone is replaced at once. Any other is watched for up to `ttl_s`.
    """
    lease = Lease(path, owner, say, beat_s)
    while not lease._claim():
        found = read(path)
        if found is None:
            continue
        holder = Owner(**found["owner"])
        if holder.is_dead_for(owner):
            say(f"{path}: {holder} is gone; taking its lease over")
        elif _stands_still(path, found, holder, say, ttl_s):
            say(f"{path}: {holder} has given no sign of life for {ttl_s:g} s; taking its lease over")
        else:
            continue
        lease._take_over()
        break
    return lease._start()


def read(path: str) -> dict[str, Any] | None:
    """The lease file's content; None where there is none. It is only ever replaced as a whole."""
    try:
        content: dict[str, Any] = files.read_json(path)
    except StorageError as err:
        if isinstance(err.__cause__, FileNotFoundError):
            return None
        raise
    return content


def _stands_still(path: str, found: dict[str, Any], holder: Owner, say: Say, ttl_s: float) -> bool:
    """Watches: True where the counter stood still, False where the file went away, RunInUseError where it moved."""
    say(f"{path} is held by {holder}; watching for up to {ttl_s:g} s whether it is alive")
    end = time.monotonic() + ttl_s
    while time.monotonic() < end:
        time.sleep(min(0.5, ttl_s / 20))
        now = read(path)
        if now is None:
            return False
        if (now["token"], now["counter"]) != (found["token"], found["counter"]):
            raise RunInUseError(
                f"{os.path.dirname(path) or '.'} is in use by {Owner(**now['owner'])}; "
                f"wait for it, stop it, or choose another directory"
            )
    return True


def _start_time(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since the boot; None where it is gone or only a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            # The command's name, in parentheses, may itself hold spaces and parentheses.
            fields = stream.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
