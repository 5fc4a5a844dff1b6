"""The dry run before step 0: what would end the run in hours, out of memory or a full disk, shows in its first minute.

The fresh state is saved through the real commit protocol, a step is made, a preview's batch is sampled from the saved
export, and the state is read back from that checkpoint, which thereby is tried, too. The run begins as if nothing had
been.
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from dist_diffusion.config.schema import DiffusionRecipe, TrainRecipe
from dist_diffusion.data.order import rank_slots
from dist_diffusion.distributed.agreement import gather, on_rank_zero
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.ds_config import micro_batch
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import ConfigError, StorageError, alike
from dist_diffusion.observe.throughput import human
from dist_diffusion.storage import publish
from dist_diffusion.storage.committed import Committed
from dist_diffusion.tasks.task import Task, TaskBatch
from dist_diffusion.training.place import Place
from dist_diffusion.training.preview import preview
from dist_diffusion.weights.resolve import export_name

GIB = 2**30
PREVIEW_STEPS = "2"
"""Of its sampler: memory does not depend on how many."""


@dataclass(frozen=True)
class Rehearsal:
    """What the dry run is made with."""

    recipe: TrainRecipe
    place: Place
    engine: TrainingEngine
    task: Task
    checkpointer: Checkpointer
    """Of a folder of its own."""


def rehearse(rehearsal: Rehearsal) -> None:
    """The dry run. StorageError where a checkpoint cannot be written, ConfigError where memory does not suffice."""
    place, start = rehearsal.place, time.monotonic()
    commit = save(rehearsal)
    with within_memory(place.group.device):
        make_step(rehearsal)
        make_preview(rehearsal, commit)
    peak = max(gather(place.group, peak_memory(place.group.device)))
    rehearsal.checkpointer.restore(rehearsal.engine, commit.path, commit.marker)
    size = sum(record["size"] for record in commit.marker["files"].values())
    remove(rehearsal)
    memory = f"{peak / GIB:.2f} GiB of GPU memory at most, " if peak else ""
    place.console.say(
        f"dry run of a step and a checkpoint: {memory}{size / GIB:.2f} GiB a commit, {human(time.monotonic() - start)}"
    )
    warn_of_a_small_disk(rehearsal, size)


@contextmanager
def within_memory(device: torch.device) -> Iterator[None]:
    """ConfigError says what to change where a block needs more memory than the device has."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the run does not fit in the memory of {device}: {str(error).splitlines()[0]} Lower train.micro_batch or "
            "preview.num_images, raise engine.zero_stage, or set engine.recompute=true or engine.offload_optimizer=true"
        ) from error


def save(rehearsal: Rehearsal) -> Committed:
    """A commit of the fresh state that every rank has verified its share of."""
    checkpointer = rehearsal.checkpointer
    history = rehearsal.task.history
    checkpointer.save(rehearsal.engine, 0, {}, None if history is None else history.to_json())
    outcome = checkpointer.settle()
    if outcome.error is not None:
        remove(rehearsal)
        with alike():
            raise StorageError(f"the dry run could not write a checkpoint: {outcome.error}")
    commit, _ = checkpointer.newest()
    assert commit is not None
    return commit


def remove(rehearsal: Rehearsal) -> None:
    """The dry run's folder."""
    on_rank_zero(rehearsal.place.group, lambda: publish.remove_folder(rehearsal.checkpointer.folder))


def make_step(rehearsal: Rehearsal) -> None:
    """One whole optimizer step on black images."""
    recipe, group, task = rehearsal.recipe, rehearsal.place.group, rehearsal.task
    slots = rank_slots(recipe.train.global_batch, group.world_size, group.rank)
    size = micro_batch(recipe, group.world_size)

    def loss_of(i: int) -> torch.Tensor:
        positions = slots[i * size : (i + 1) * size]
        return task.loss(rehearsal.engine, black(recipe, task, positions, group.device)).loss

    rehearsal.engine.step(0, len(slots) // size, loss_of)


def black(recipe: TrainRecipe, task: Task, positions: range, device: torch.device) -> TaskBatch:
    """A micro-batch of black images, or latents of zeros, with the draws of these positions."""
    size = recipe.data.image_size
    shape = (len(positions), recipe.model.in_channels, size, size)
    dtype = torch.float32 if recipe.data.latents else torch.uint8
    drawn = {draw.name: [draw.at(recipe.seed, j).numpy() for j in positions] for draw in task.draws}
    return TaskBatch(
        images=torch.zeros(shape, dtype=dtype, device=device),
        labels=torch.zeros(len(positions), dtype=torch.int64, device=device),
        draws={name: torch.from_numpy(np.stack(values)).to(device) for name, values in drawn.items()},
    )


def make_preview(rehearsal: Rehearsal, commit: Committed) -> None:
    """The preview's batch, in two steps of its sampler."""
    recipe = rehearsal.recipe
    if not isinstance(recipe, DiffusionRecipe) or not recipe.preview.num_images:
        return
    sampler = dataclasses.replace(recipe.preview.sampler, steps=PREVIEW_STEPS)
    short = dataclasses.replace(recipe, preview=dataclasses.replace(recipe.preview, sampler=sampler))
    export = os.path.join(commit.path, export_name(rehearsal.checkpointer.exports[0]))
    preview(short, export, rehearsal.place.group)


def peak_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory; of a CPU's 0: what a process takes there is no measure of what it needs."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def warn_of_a_small_disk(rehearsal: Rehearsal, size: int) -> None:
    """Says where the disk does not hold the commits that are to be kept, and the one being written."""
    place, keep = rehearsal.place, rehearsal.recipe.checkpoint.keep
    free = shutil.disk_usage(place.run_dir.path).free
    if keep and free < (keep + 1) * size:
        place.console.say(
            f"the disk of {place.run_dir.path} has {free / GIB:.2f} GiB free: checkpoint.keep={keep} needs "
            f"{(keep + 1) * size / GIB:.2f}"
        )
