"""Where a training process runs, what it says of itself, and the verdict that it leaves."""

import os
import platform
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata

from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.errors import (
    PEER_LOST,
    USER_ERROR,
    DistDiffusionError,
    InternalError,
    PeerLostError,
    RunInUseError,
    StoppedError,
    StorageError,
)
from dist_diffusion.observe.console import Console
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.runs.verdict import Verdict


@dataclass(frozen=True)
class Place:
    """Where and as whom this process runs."""

    run_dir: RunDir
    group: Group
    console: Console
    launch_id: str
    """Rank 0's: a launcher may not hand its variables to other hosts."""
    cores: int
    """CPU cores that are this rank's."""
    where: Whereabouts
    """What this rank is at."""


def environment(place: Place, threads: int) -> dict[str, object]:
    """What a later reader wants to know of this start."""
    packages = ("dist-diffusion", "torch", "deepspeed", "webdataset", "numpy", "safetensors")
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "world_size": place.group.world_size,
        "device": str(place.group.device),
        "threads": threads,
        "launch_id": place.launch_id,
    }


def version(package: str) -> str:
    """The installed version, or that it runs from a source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def record(place: Place, code: int, reason: str, step: int | None) -> None:
    """This rank's verdict, unless an earlier one of this launch stands."""
    log = os.path.relpath(place.run_dir.log(place.group.rank), place.run_dir.path)
    found = Verdict(code, reason, place.group.rank, step, place.launch_id, log=log)
    verdicts.record(place.run_dir.verdict, found)


def reported(error: BaseException, place: Place, step: int | None) -> DistDiffusionError:
    """The error to raise in place of `error`, once its verdict is written and its traceback logged.

    `step` is None before the run has begun. A start that was refused, or a run that another process has taken over,
    leaves no verdict.
    """
    known = as_known(error, place.console)
    refused = step is None and known.exit_code == USER_ERROR
    if refused or isinstance(known, RunInUseError):
        return known
    if place.group.rank == 0 or not known.agreed:
        # A disk that is full must not hide the error itself.
        with suppress(StorageError):
            record(place, known.exit_code, str(known), step)
    known.recorded = True
    return known


def as_known(error: BaseException, console: Console) -> DistDiffusionError:
    """One of the package's errors: a lost peer, or a bug, where it is not one already."""
    if isinstance(error, DistDiffusionError):
        return error
    if groups.is_peer_loss(error):
        return PeerLostError(f"{PEER_LOST}: {str(error).splitlines()[0]}")
    if isinstance(error, KeyboardInterrupt):
        return StoppedError("interrupted; the steps since the last commit are lost: run the same command again")
    console.error("".join(traceback.format_exception(error)).rstrip())
    return InternalError(f"{type(error).__name__}: {error}")
