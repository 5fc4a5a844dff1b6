"""Ranks that decide together, so that none goes on where another cannot."""

import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import torch
from torch import distributed as dist

from dist_diffusion.distributed.group import Group
from dist_diffusion.errors import PEER_LOST, DistDiffusionError, PeerLostError

POLL_S = 0.05

Result = TypeVar("Result")
Params = ParamSpec("Params")


def peers_may_leave(collective: Callable[Params, Result]) -> Callable[Params, Result]:
    """A collective whose failure means that a peer is gone: its error becomes a PeerLostError."""

    @functools.wraps(collective)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return collective(*args, **kwargs)
        except RuntimeError as error:
            raise PeerLostError(f"{PEER_LOST}: {str(error).splitlines()[0]}") from error

    return call


@peers_may_leave
def broadcast(group: Group, value: Any) -> Any:
    """Rank 0's value, in every rank."""
    held = [value]
    dist.broadcast_object_list(held, src=0, group=group.control)
    return held[0]


@peers_may_leave
def gather(group: Group, value: Any) -> list[Any]:
    """Every rank's value, in order of rank, in every rank."""
    values: list[Any] = [None] * group.world_size
    dist.all_gather_object(values, value, group=group.control)
    return values


@peers_may_leave
def any_of(group: Group, flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether any rank sets it."""
    values = torch.tensor([int(flag) for flag in flags], dtype=torch.int32)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=group.control)
    return [bool(value) for value in values.tolist()]


def wait_for_all(group: Group, is_done: Callable[[], bool]) -> None:
    """Until it is done in every rank. In short rounds: it may take longer than a collective is allowed to."""
    while any_of(group, [not is_done()])[0]:
        time.sleep(POLL_S)


@peers_may_leave
def sum_of(group: Group, values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum over ranks of a CPU tensor (int64 wraps around: a sum mod 2**64)."""
    total = values.clone()
    dist.all_reduce(total, group=group.control)
    return total


def on_rank_zero(group: Group, work: Callable[[], Result]) -> Result:
    """What `work` returns on rank 0, in every rank; an error of the package's is raised in every rank alike."""
    result, error = _attempt(work) if group.rank == 0 else (None, None)
    result, error = broadcast(group, (result, error))
    if error is not None:
        raise _agreed(error)
    return result  # type: ignore[return-value]


def patiently_on_rank_zero(group: Group, work: Callable[[], Result]) -> Result:
    """As on_rank_zero, for work that may take longer than a collective is allowed to: `work` runs in a thread."""
    if group.rank:
        wait_for_all(group, lambda: True)
        return on_rank_zero(group, work)
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    # Where a peer is lost meanwhile, the work is not waited for: the process is about to end.
    pool.shutdown(wait=False)
    wait_for_all(group, future.done)
    return on_rank_zero(group, future.result)


def together(group: Group, work: Callable[[], Result]) -> Result:
    """What `work` returns on this rank, once it has succeeded on all; else the first rank's error, in every rank."""
    result, error = _attempt(work)
    errors = [e for e in gather(group, error) if e is not None]
    if errors:
        raise _agreed(errors[0])
    return result  # type: ignore[return-value]


def _attempt(work: Callable[[], Result]) -> tuple[Result | None, DistDiffusionError | None]:
    try:
        return work(), None
    except DistDiffusionError as error:
        return None, error


def _agreed(error: DistDiffusionError) -> DistDiffusionError:
    error.agreed = True
    return error
