"""The files of one commit: what each rank writes and reports, and what rank 0 makes of them."""

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from dist_diffusion.config.averages import WEIGHTS, exported_averages
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.engine import slices
from dist_diffusion.engine.slices import MASTER, Slices, Snapshot
from dist_diffusion.errors import StorageError
from dist_diffusion.storage import committed, files, publish
from dist_diffusion.storage.committed import FileRecord
from dist_diffusion.weights import files as weight_files
from dist_diffusion.weights.resolve import export_name

POLL_S = 0.05


@dataclass(frozen=True)
class Job:
    """What the background thread of one rank works on."""

    step: int
    folder: str
    snap: Snapshot
    marker: dict[str, Any]


def write_share(job: Job, rank: int) -> None:
    """One rank's slices and, after them, its report, in the staged folder."""
    name = slices.rank_file(rank)
    slices.refuse_non_finite(job.snap)
    slices.write(job.snap, os.path.join(job.folder, name))
    record = committed.describe(job.folder, [name])[name]
    publish.write_json(os.path.join(job.folder, report_file(rank)), {name: asdict(record)})


def report_file(rank: int) -> str:
    """Where a rank says that its slices are written."""
    return f"rank-{rank:05d}.json"


def failure_file(rank: int) -> str:
    """Where a rank says that it could not write them."""
    return f"rank-{rank:05d}.failed"


def report_failure(folder: str, rank: int, error: str) -> None:
    """Tells rank 0, as far as the disk allows, so that it need not wait for the time-out."""
    with suppress(StorageError):
        publish.write_json(os.path.join(folder, failure_file(rank)), {"error": error})


def await_ranks(folder: str, world_size: int, timeout_s: float) -> dict[str, FileRecord]:
    """The records of all ranks' files; StorageError names the rank that failed or stayed silent."""
    deadline = time.monotonic() + timeout_s
    records: dict[str, FileRecord] = {}
    for rank in range(world_size):
        report = os.path.join(folder, report_file(rank))
        while not files.exists(report):
            failure = first_failure(folder, world_size)
            if failure:
                raise StorageError(failure)
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{report} did not appear within {timeout_s:g} s: is the folder shared by all hosts?"
                )
            time.sleep(POLL_S)
        records |= {name: FileRecord(**record) for name, record in files.read_json(report).items()}
    return records


def first_failure(folder: str, world_size: int) -> str | None:
    """What the first rank with a failure says."""
    for rank in range(world_size):
        path = os.path.join(folder, failure_file(rank))
        if files.exists(path):
            return f"rank {rank}: {files.read_json(path)['error']}"
    return None


def write_exports(job: Job, recipe: TrainRecipe) -> dict[str, FileRecord]:
    """Assembles the full tensors of each exported average from the rank files."""
    names = []
    for average in exported_averages(recipe):
        names.append(export_name(average))
        write_average(os.path.join(job.folder, names[-1]), average, recipe, job.folder, job.marker)
    return committed.describe(job.folder, names)


def write_average(path: str, average: str, recipe: TrainRecipe, folder: str, marker: Mapping[str, Any]) -> None:
    """One average in the form of exports, of a commit's folder with all rank files and what its marker says."""
    state = marker["state"]
    reader = Slices(folder, range(state["world_size"]))
    key = MASTER if average == WEIGHTS else average
    tensors = {name: reader.full(name, key, shape) for name, shape in state["shapes"].items()}
    info = {"average": average, "step": marker["step"], "images": marker["images"], "updates": num_updates(marker)}
    weight_files.save(path, tensors, recipe, {**info, **marker["extra"]})


def num_updates(marker: Mapping[str, Any]) -> int:
    """The updates that a commit's weights have had: its steps but for those that were skipped."""
    return round(marker["state"]["optimizer_step"])
