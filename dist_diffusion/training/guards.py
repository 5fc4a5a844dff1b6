"""What runs beside the training on each rank: the watchdog, and on rank 0 the mirror."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dist_diffusion.config.schema import TrainRecipe, WatchdogOptions
from dist_diffusion.distributed.agreement import POLL_S, any_of, broadcast, on_rank_zero, patiently_on_rank_zero
from dist_diffusion.distributed.watchdog import Watchdog
from dist_diffusion.distributed.whereabouts import Phase
from dist_diffusion.errors import PLEASE_REQUEUE, StoppedError, StorageError, alike
from dist_diffusion.runs.lease import Lease
from dist_diffusion.storage import restoring
from dist_diffusion.storage.mirror import Mirror
from dist_diffusion.training.place import Place, record
from dist_diffusion.training.state import Run

LEAVE_S = 15.0
"""How long a run that ends waits for the last of its mirror: launchers give a stopping one seconds."""


@contextmanager
def watched(recipe: TrainRecipe, place: Place) -> Iterator[None]:
    """A block within which this rank's whereabouts are watched; a hang leaves a verdict that asks for another start."""
    watchdog = Watchdog(
        place.where,
        limits(recipe.watchdog),
        place.group.rank,
        place.group.world_size,
        place.console.error,
        lambda reason: record(place, PLEASE_REQUEUE, reason, place.where.spot.step),
        place.run_dir.log(place.group.rank),
    )
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()


def limits(options: WatchdogOptions) -> dict[Phase, float]:
    """Seconds by phase."""
    return {
        "start": options.start_s,
        "first_step": options.first_step_s,
        "step": options.step_s,
        "save": options.save_s,
        "preview": options.preview_s,
    }


def restore_from_mirror(recipe: TrainRecipe, place: Place) -> None:
    """Fetches the run where its directory has no commit and the mirror has; CheckpointError where that is ahead."""
    remote, run_dir, say = recipe.checkpoint.mirror, place.run_dir, place.console.say
    if remote is None:
        return
    # It may take longer than a collective is allowed to.
    patiently_on_rank_zero(place.group, lambda: restoring.restore(run_dir.path, remote, run_dir.parents, say))
    on_rank_zero(place.group, lambda: restoring.check(run_dir.path, remote, run_dir.parents))


def make_mirror(recipe: TrainRecipe, place: Place, lease: Lease | None) -> Mirror | None:
    """The mirror of a run that has one, on the rank that holds the lease."""
    remote, run_dir = recipe.checkpoint.mirror, place.run_dir
    if remote is None or lease is None:
        return None
    return Mirror(run_dir.path, remote, run_dir.parents, run_dir.not_mirrored, place.console.say, lease.holds)


def await_mirror(run: Run) -> None:
    """Until the mirror has all of a run that is done: StorageError where it cannot have it, StoppedError where a signal
    comes first. All ranks wait and end alike; nothing else limits it, for how long a last upload takes nobody knows.
    """
    mirror = run.mirror
    if mirror is not None:
        mirror.request()
    while True:
        is_behind, stop = any_of(run.group, [mirror is not None and mirror.is_behind, run.stop.requested])
        if not is_behind:
            break
        if stop:
            with alike():
                raise StoppedError("stopped as asked; the run is done, its mirror is behind: run the command again")
        time.sleep(POLL_S)
    error = broadcast(run.group, None if mirror is None else mirror.error)
    if error is not None:
        with alike():
            raise StorageError(f"the run is done, its mirror is behind: {error}. Run the command again to finish it")
