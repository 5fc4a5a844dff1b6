"""What a run keeps of its power-function averages, so that others can be made of them: RUN/averages/step-N.ATTEMPT.

They stay when the commits that they are of are pruned.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dist_diffusion.config.averages import std_name
from dist_diffusion.config.load import from_dict
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.engine.commit import num_updates, write_average
from dist_diffusion.errors import DistDiffusionError, RunInUseError, StorageError
from dist_diffusion.runs.layout import step_name, step_of
from dist_diffusion.storage import committed, files, publish
from dist_diffusion.storage.committed import Committed
from dist_diffusion.weights.posthoc import FORMAT, snapshot_file
from dist_diffusion.weights.resolve import export_name

Marker = Mapping[str, Any]
"""What a commit says of itself."""


@dataclass(frozen=True)
class Snapshots:
    """A run's folder of them; rank 0 alone works here."""

    folder: str
    attempt: str
    may_write: Callable[[], bool]

    def begin_at(self, commit: Committed | None) -> list[str]:
        """Makes the folder what it was at the commit that a start goes on from; returns what to say of it."""
        said = [f"removed {path}, which was never committed" for path in committed.sweep(self.folder)]
        found = committed.scan(self.folder)
        step = -1 if commit is None else step_of(commit.name)
        for later in (snapshot for snapshot in found if step_of(snapshot.name) > step):
            # Its commit was damaged or removed: the run does these steps again, perhaps differently.
            said.append(f"set aside as {committed.quarantine(later, 'stale')}: this run begins before it")
        if commit is not None and commit.name not in [snapshot.name for snapshot in found]:
            # The start before ended between the commit and its snapshot.
            failure = self.keep(commit.path, from_dict(commit.marker["recipe"], commit.path), commit.marker)
            said += [] if failure is None else [failure]
        return said

    def keep(self, source: str, recipe: TrainRecipe, marker: Marker) -> str | None:
        """Makes the snapshot of the commit in `source`, if it is due; returns what to say where that fails."""
        if not is_due(recipe, marker):
            return None
        name = step_name(marker["step"])
        try:
            self._write(committed.stage(self.folder, name, self.attempt), source, recipe, marker)
        except DistDiffusionError as error:
            with suppress(StorageError):
                committed.abandon(os.path.join(self.folder, f"{name}.{self.attempt}"))
            return f"the averages of step {marker['step']} are not kept, the commit stands: {error}"
        return None

    def _write(self, path: str, source: str, recipe: TrainRecipe, marker: Marker) -> None:
        stds = {std_name(std): std for std in recipe.ema.stds}
        for average in stds:
            write_file(os.path.join(path, snapshot_file(average)), average, source, recipe, marker)
        records = committed.describe(path, map(snapshot_file, stds))
        if not self.may_write():
            raise RunInUseError("another process has taken over this run directory")
        content = {"format": FORMAT, "step": marker["step"], "images": marker["images"]}
        committed.mark(path, records, {**content, "updates": num_updates(marker), "stds": stds})


def is_due(recipe: TrainRecipe, marker: Marker) -> bool:
    """Whether a commit leaves a snapshot: every so many do, and that of the run's end."""
    if not recipe.ema.stds or not num_updates(marker):
        return False
    ends = marker["step"] == recipe.train.steps
    return ends or marker["extra"]["commits"] % recipe.ema.snapshot_every_commits == 0


def write_file(path: str, average: str, source: str, recipe: TrainRecipe, marker: Marker) -> None:
    """A second name of the commit's export, where there is one and the file system can; else the same anew."""
    if average in marker["exports"]:
        publish.link(os.path.join(source, export_name(average)), path)
    if files.exists(path):
        return
    with files.failures("read", source):
        write_average(path, average, recipe, source, marker)
