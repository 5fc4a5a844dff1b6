"""Commits of the training state: a copy to host memory blocks the loop, everything else is a background thread's.

No collectives are made in the background: ranks report through files in the staged folder, and the folder exists
once rank 0 has written its marker. The outcome is agreed by the ranks at a later step boundary.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from dist_diffusion.config.averages import exported_averages, same_average
from dist_diffusion.config.load import from_dict, to_dict
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed.agreement import broadcast, on_rank_zero, together, wait_for_all
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine import slices, state
from dist_diffusion.engine.commit import (
    Job,
    await_ranks,
    report_failure,
    write_exports,
    write_share,
)
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.engine.snapshots import Snapshots
from dist_diffusion.errors import CheckpointError, RunInUseError, StorageError, alike, told
from dist_diffusion.runs.keeping import kept
from dist_diffusion.runs.layout import step_name, step_of
from dist_diffusion.storage import committed
from dist_diffusion.storage.committed import Committed

FORMAT = 1

Say = Callable[[str], None]
Scores = Callable[[], Mapping[int, float]]
"""What commits are worth by checkpoint.best, by step."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended: `error` is None where it was committed."""

    step: int
    seconds: float
    error: str | None


class Checkpointer:
    """Saves to and restores from a folder of commits, one save in flight."""

    def __init__(
        self,
        folder: str,
        recipe: TrainRecipe,
        group: Group,
        attempt: str,
        say: Say,
        may_write: Callable[[], bool],
        scores: Scores = dict,
        snapshots: Snapshots | None = None,
    ) -> None:
        self.folder, self.recipe, self.group, self.attempt, self.say = folder, recipe, group, attempt, say
        self._may_write, self._scores, self.snapshots = may_write, scores, snapshots
        self._buffers: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._outcome: Outcome | None = None

    @property
    def exports(self) -> tuple[str, ...]:
        """The averages that each commit exports."""
        return exported_averages(self.recipe)

    @property
    def in_flight(self) -> bool:
        """Whether a save has begun whose outcome the ranks have not agreed on."""
        return self._thread is not None

    @property
    def finished(self) -> bool:
        """Whether rank 0 is done with the save in flight, its snapshot and pruning with it."""
        return self.group.rank == 0 and self._thread is not None and not self._thread.is_alive()

    def of_folder(self, folder: str) -> "Checkpointer":
        """The same for another folder, with host memory of its own."""
        return Checkpointer(folder, self.recipe, self.group, self.attempt, self.say, self._may_write)

    def folder_of(self, step: int) -> str:
        """Where this start commits a step."""
        return os.path.join(self.folder, f"{step_name(step)}.{self.attempt}")

    def save(self, engine: TrainingEngine, step: int, extra: dict[str, Any], task_state: Any) -> None:
        """Begins to commit the state after `step` steps.

        `extra` and `task_state` are the caller's, JSON, kept as they are; only the first enters the exports.
        """
        assert not self.in_flight, "one save at a time"
        job = Job(
            step=step,
            folder=self.folder_of(step),
            snap=slices.snapshot(engine.deepspeed, engine.ema, self._buffers),
            marker={**self._marker(engine, step, extra), "task": task_state},
        )
        self._outcome = None
        self._thread = threading.Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> Outcome:
        """Waits for the save in flight and agrees on its outcome: all ranks call it together."""
        thread = self._thread
        assert thread is not None
        wait_for_all(self.group, lambda: not thread.is_alive())
        self._thread = None
        outcome = broadcast(self.group, self._outcome)
        assert isinstance(outcome, Outcome)
        if outcome.error is not None:
            # All threads have ended, and none starts before every rank is told: nobody is writing there now.
            on_rank_zero(self.group, lambda: self._clear_failed(outcome.step))
        return outcome

    def newest(self) -> tuple[Committed | None, list[Committed]]:
        """The newest commit that verifies, agreed by all ranks, and the damaged ones passed over, named aloud.

        None where nothing was ever committed; CheckpointError where commits exist and none verifies, or the newest is
        of another format; StorageError where one cannot be read, which does not prove it damaged.
        """
        damaged: list[Committed] = []
        for commit in reversed(on_rank_zero(self.group, lambda: committed.scan(self.folder))):
            try:
                together(self.group, lambda commit=commit: self._verify_share(commit))  # type: ignore[misc]
            except committed.DamagedError as error:
                self.say(f"{commit.name} cannot be used: {error}")
                damaged.append(commit)
                continue
            return commit, damaged
        if damaged:
            with alike():
                raise CheckpointError(
                    f"{self.folder}: none of its {len(damaged)} commits verifies (see above): restore one, or start a "
                    "new run_dir"
                )
        return None, []

    def restore(self, engine: TrainingEngine, folder: str, marker: Mapping[str, Any]) -> None:
        """Fills the engine from a commit of any world size and ZeRO stage."""
        head, before = marker["state"], from_dict(marker["recipe"], folder).ema
        sources = {name: same_average(name, self.recipe.ema, before) for name in engine.ema.values}
        for name, source in sources.items():
            if source is None:
                self.say(f"{name} is new: it begins at the weights of step {marker['step']}")
        together(self.group, lambda: state.fill(engine.deepspeed, engine.ema, folder, head, sources))
        state.refresh(engine.deepspeed, head, engine.scaler)
        engine.updates = round(head["optimizer_step"])

    def sweep(self) -> list[str]:
        """Removes what earlier starts left uncommitted; rank 0 only, which holds the lease."""
        return committed.sweep(self.folder)

    def _clear_failed(self, step: int) -> None:
        with suppress(StorageError):
            if self._may_write():
                committed.abandon(self.folder_of(step))

    def _verify_share(self, commit: Committed) -> None:
        if commit.marker and commit.marker["format"] != FORMAT:
            raise CheckpointError(
                f"{commit.path} is of format {commit.marker['format']}; this version reads format {FORMAT}"
            )
        names = sorted(commit.marker.get("files", {}))
        committed.verify(commit, names[self.group.rank :: self.group.world_size])

    def _marker(self, engine: TrainingEngine, step: int, extra: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "step": step,
            "images": step * self.recipe.train.global_batch,
            "recipe": to_dict(self.recipe),
            "exports": list(self.exports),
            "state": state.header(engine.deepspeed, engine.scaler),
            "extra": extra,
        }

    def _run(self, job: Job) -> None:
        start = time.monotonic()
        error: str | None = "its thread ended early"
        try:
            committed.stage(self.folder, step_name(job.step), self.attempt)
            write_share(job, self.group.rank)
            if self.group.rank == 0:
                self._commit(job)
            error = None
        except Exception as caught:
            error = told(caught)
            report_failure(job.folder, self.group.rank, error)
        finally:
            self._outcome = Outcome(job.step, time.monotonic() - start, error)
        if self.group.rank == 0 and error is None:
            self._keep_averages(job)
            self._prune()

    def _commit(self, job: Job) -> None:
        """Rank 0: wait for every rank's file, make the exports, mark."""
        records = await_ranks(job.folder, self.group.world_size, self.recipe.engine.timeout_s)
        records |= write_exports(job, self.recipe)
        if not self._may_write():
            raise RunInUseError("another process has taken over this run directory: nothing is committed")
        committed.mark(job.folder, records, job.marker)

    def _keep_averages(self, job: Job) -> None:
        failure = self.snapshots and self.snapshots.keep(job.folder, self.recipe, job.marker)
        if failure:
            self.say(failure)

    def _prune(self) -> None:
        """An old commit that cannot be removed is told, and harms nothing: the new one stands."""
        if not self._may_write():
            return
        try:
            steps = [step_of(found.name) for found in committed.scan(self.folder)]
            stay = kept(steps, self.recipe.checkpoint, self._scores())
            committed.prune(self.folder, [step_name(step) for step in stay])
        except StorageError as error:
            self.say(f"old commits could not be removed: {error}")
