"""`-m benchmarks.checkpoint_ranks REPORT FOLDER SECONDS`: the measurements of `bench.py checkpoint`, in every rank."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.saving import KEPT, Saving, num_bytes
from benchmarks.setting import process_group
from benchmarks.state_bytes import LAYOUTS, measured
from benchmarks.timing import alternate_measured
from dist_diffusion.distributed.agreement import broadcast, gather
from dist_diffusion.distributed.group import Group

STAGE = 1


def main() -> None:
    """Rank 0 writes what was measured."""
    report, folder, seconds = sys.argv[1:]
    with process_group() as group:
        found = {"state": state(group), **saves(group, Path(folder), float(seconds))}
        if group.rank == 0:
            Path(report).write_text(json.dumps(found))


def state(group: Group) -> list[Any]:
    """For each layout the bytes of every rank, between steps and between micro-batches."""
    return [gather(group, measured(layout, group)) for layout in LAYOUTS]


def saves(group: Group, folder: Path, seconds: float) -> dict[str, Any]:
    """Seconds of saves and resumes, and bytes of a save."""
    saving = Saving(STAGE, group, folder)

    def agree(time_is_up: bool) -> bool:
        return broadcast(group, time_is_up)

    saving.save()
    saving.save_by_deepspeed(KEPT)
    saving.check_restored(saving.resume)
    saving.check_restored(saving.resume_by_deepspeed)
    resumes = alternate_measured(
        {
            "ours": saving.resume,
            "read": saving.bare_read,
            "hash": saving.bare_hash,
            "deepspeed": saving.resume_by_deepspeed,
        },
        seconds / 3,
        agree,
    )
    saved = alternate_measured(
        {
            "ours": saving.save,
            "first": saving.first_save,
            "bare": saving.copy_and_write,
            "deepspeed": saving.save_by_deepspeed,
        },
        seconds * 2 / 3,
        agree,
    )
    sizes = {"ours": num_bytes(saving.commit), "deepspeed": num_bytes(folder / "deepspeed" / KEPT)}
    return {"resumes": resumes, "saves": saved, "bytes": sizes}


if __name__ == "__main__":
    main()
