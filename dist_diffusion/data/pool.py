"""Decode processes of a rank, and the memory that they share with it."""

import json
import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from dist_diffusion.data.decode_worker import LAUNCHER_SIGNALS
from dist_diffusion.errors import InternalError

MAX_CHUNK = 32
CHUNKS_AHEAD = 2
"""Chunks that a process has in hand: one to decode, one to go on with."""
POLL_S = 0.1
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Not what happens to lie in the working folder (Python 3.11 on).
    "PYTHONSAFEPATH": "1",
    # Memory of one image serves the next, instead of being given back to the kernel and zeroed by it anew: blocks of
    # Pillow's (of 16 MiB at most), and what glibc's malloc keeps (64 MiB at most) and takes from its heap.
    "PILLOW_BLOCKS_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class Slabs:
    """Shared memory by the slab. A slab is free again when the last array or tensor over it is gone."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape = shape
        self.size = -(-int(np.prod(shape)) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.descriptor = _anonymous_file()
        self._mapped: list[mmap.mmap] = []
        self._free: deque[int] = deque()

    def take(self) -> tuple[int, np.ndarray]:
        """The number of a free slab, or of a new one where none is, and the array over it: uint8 of `shape`."""
        number = self._free.pop() if self._free else self._grow()
        flat = np.frombuffer(self._mapped[number], dtype=np.uint8, count=int(np.prod(self.shape)))
        weakref.finalize(flat, self._free.append, number).atexit = False
        return number, flat.reshape(self.shape)

    def close(self) -> None:
        """No more slabs; what is still referred to stays."""
        os.close(self.descriptor)

    def _grow(self) -> int:
        number = len(self._mapped)
        os.ftruncate(self.descriptor, (number + 1) * self.size)
        self._mapped.append(mmap.mmap(self.descriptor, self.size, offset=number * self.size))
        return number


@dataclass
class PoolDecoding:
    """The images of one step while they are decoded."""

    images: np.ndarray
    slab: int
    failed: dict[int, str] = field(default_factory=dict)
    """Why images could not be decoded, by their number in the step."""
    chunks: int = 0
    """Still out."""


class DecodePool:
    """Processes that read and decode. One thread at a time; made by the main thread, which they are not to outlive."""

    def __init__(self, num_workers: int, samples: int, size: int) -> None:
        self._slabs = Slabs((samples, size, size, 3))
        self._workers = [_Worker(self._slabs) for _ in range(num_workers)]
        self._selector = selectors.DefaultSelector()
        for worker in self._workers:
            self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        self._chunk = max(1, min(MAX_CHUNK, -(-samples // num_workers)))
        self._jobs: dict[int, tuple[PoolDecoding, int]] = {}
        self._num_jobs = 0

    def begin(self, records: np.ndarray, paths: Mapping[int, str], cancelled: Callable[[], bool]) -> PoolDecoding:
        """Hand out one step's samples; returns when all are handed out, or `cancelled`."""
        number, images = self._slabs.take()
        decoding = PoolDecoding(images, number)
        for first in range(0, len(records), self._chunk):
            worker = self._idlest(cancelled)
            if worker is None:
                break
            chunk = records[first : first + self._chunk]
            self._jobs[self._num_jobs] = decoding, first
            decoding.chunks += 1
            worker.send(self._num_jobs, number, first, chunk, paths)
            self._num_jobs += 1
        return decoding

    def finish(self, decoding: PoolDecoding, cancelled: Callable[[], bool]) -> None:
        """Wait until its samples are decoded, or `cancelled`."""
        while decoding.chunks and not cancelled():
            self._receive(POLL_S)

    def is_done(self, decoding: PoolDecoding) -> bool:
        """Whether there is nothing to wait for."""
        self._receive(0)
        return not decoding.chunks

    def forget_files(self) -> None:
        """The processes close their files before they go on."""
        for worker in self._workers:
            worker.forget = True

    def close(self) -> None:
        """End the processes; what they are at is lost."""
        self._selector.close()
        for worker in self._workers:
            worker.end()
        self._slabs.close()

    def _idlest(self, cancelled: Callable[[], bool]) -> "_Worker | None":
        while not cancelled():
            worker = min(self._workers, key=lambda worker: worker.in_hand)
            if worker.in_hand < CHUNKS_AHEAD:
                return worker
            self._receive(POLL_S)
        return None

    def _receive(self, timeout: float) -> None:
        """Take the answers that there are."""
        for key, _ in self._selector.select(timeout):
            answer = key.data.receive()
            decoding, first = self._jobs.pop(answer["job"])
            decoding.failed |= {first + int(i): reason for i, reason in answer["failed"].items()}
            decoding.chunks -= 1


class _Worker:
    """One process and the channel to it."""

    def __init__(self, slabs: Slabs) -> None:
        ours, theirs = socket.socketpair()
        given = [os.getpid(), theirs.fileno(), slabs.descriptor, slabs.size, slabs.shape[0], slabs.shape[1]]
        paths = [_PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        # A program of its own, not a fork: some clients of object stores hang in forked processes, and of what the
        # rank has imported it needs nothing.
        with _blocked(LAUNCHER_SIGNALS):
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dist_diffusion.data.decode_worker", *map(str, given)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), slabs.descriptor],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **WORKER_ENVIRONMENT},
            )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.in_hand = 0
        self.forget = False

    def send(self, job: int, slab: int, first: int, records: np.ndarray, paths: Mapping[int, str]) -> None:
        """Ask for one chunk."""
        named = {number: paths[number] for number in set(records["shard"].tolist())}
        task = {"job": job, "slab": slab, "first": first, "paths": named, "forget": self.forget}
        self.forget = False
        try:
            self.connection.send_bytes(json.dumps(task).encode() + b"\n" + records.tobytes())
        except OSError as error:
            raise self._lost() from error
        self.in_hand += 1

    def receive(self) -> dict[str, Any]:
        """The answer to a chunk."""
        try:
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._lost() from error
        self.in_hand -= 1
        return answer

    def end(self) -> None:
        """Now."""
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _lost(self) -> InternalError:
        code = self.process.wait()
        return InternalError(
            f"decode process {self.process.pid} ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}: "
            "look in the kernel's log for what killed it, such as memory that ran out; fewer data.workers need less"
        )


@contextmanager
def _blocked(signals: Iterable[int]) -> Iterator[None]:
    """Signals that a process started meanwhile does not get: they would end it before it can ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _anonymous_file() -> int:
    """A file without a name, in memory where the system offers that: /dev/shm is small in many containers."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("decoded-images", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
