"""Work shared among processes, or done in this one."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dist_diffusion.distributed.parent import die_with_parent
from dist_diffusion.errors import PeerLostError

_AHEAD = 2
"""Jobs in hand for each worker: one that it is at, one to go on with."""

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def each(function: Callable[[JobT], ResultT], jobs: Iterable[JobT], workers: int) -> Iterator[ResultT]:
    """The result of each job, in the order in which they end; jobs are asked for as they are needed.

    With one worker no process is started. `function` must be a module's own: workers import it, and nothing else.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    # Read by numpy when a worker imports it: threads for linear algebra, of which there is none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Not forked: some clients of object stores hang in forked processes.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(os.getpid(),))
    is_done = False
    try:
        yield from _results(pool, function, iter(jobs), workers * _AHEAD)
        is_done = True
    except BrokenProcessPool as error:
        raise PeerLostError(
            "a worker process ended without a word, as one does that the system kills for lack of memory: run the "
            "same command again, with fewer --workers"
        ) from error
    finally:
        if not is_done:
            # What they are at can take minutes, and counts for nothing.
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
        pool.shutdown(cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor, function: Callable[[JobT], ResultT], jobs: Iterator[JobT], room: int
) -> Iterator[ResultT]:
    pending: set[Future[ResultT]] = set()
    while True:
        pending |= {pool.submit(function, job) for job in itertools.islice(jobs, room - len(pending))}
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


def _start(parent: int) -> None:
    die_with_parent(parent)
    # The terminal's goes to all; what it means is the parent's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
