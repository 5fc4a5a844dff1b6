"""A training command from recipe to verdict: assemble, run, and say how it ended."""

import dataclasses
from collections.abc import Mapping

from dist_diffusion.config.load import to_yaml
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.agreement import broadcast, on_rank_zero
from dist_diffusion.distributed.environment import Topology, share_of_cores
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.signals import StopFlag
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.errors import DONE
from dist_diffusion.observe.console import Console
from dist_diffusion.runs import lease as leases
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.storage import committed, publish
from dist_diffusion.training.assembly import assemble
from dist_diffusion.training.guards import LEAVE_S, await_mirror, restore_from_mirror, watched
from dist_diffusion.training.looks import catch_up
from dist_diffusion.training.loop import run_loop
from dist_diffusion.training.place import Place, environment, record, reported
from dist_diffusion.training.prepare import Prepared, decode_workers, prepare
from dist_diffusion.training.start import Start, find_start
from dist_diffusion.training.state import Run
from dist_diffusion.training.validation import make_validation


def train(recipe: TrainRecipe, topology: Topology, env: Mapping[str, str]) -> None:
    """Starts or resumes the run of recipe.run_dir. Errors leave a verdict there once this launch holds its lease."""
    threads = groups.set_threads(recipe.threads, topology)
    stop = StopFlag()
    stop.install()
    group = groups.start(topology, recipe.engine.timeout_s)
    prepared = prepare(recipe, group)
    validation = make_validation(prepared.recipe, prepared.manifest.classes, group)
    assert recipe.run_dir is not None
    run_dir = RunDir(recipe.run_dir)
    lease = take_lease(group, run_dir, env)
    console = Console(run_dir.log(group.rank), group.rank)
    launch_id = broadcast(group, verdicts.unique_launch_id(env))
    place = Place(run_dir, group, console, launch_id, share_of_cores(topology), Whereabouts())
    begun: list[Run] = []
    step: int | None = None
    try:
        restore_from_mirror(recipe, place)
        with watched(recipe, place):
            start = find_start(prepared, place, lease)
            begin(prepared, place, threads, start)
            step = start.step
            begun.append(assemble(prepared, validation, place, stop, lease, start))
            if start.commit is not None:
                catch_up(begun[0], start.commit.path)
            run_loop(begun[0])
        conclude(begun[0], place)
    except BaseException as error:
        known = reported(error, place, begun[0].step if begun else step)
        for run in begun:
            leave_mirror(run)
        raise known from error
    finally:
        for run in begun:
            run.observer.close()
            run.loader.close()
        if lease is not None:
            lease.release()
    groups.stop()


def conclude(run: Run, place: Place) -> None:
    """Leaves the verdict of a run that is done, once its mirror has all else: a kill before that leaves none."""
    run.console.say(f"done: {run.step} steps")
    if run.recipe.checkpoint.mirror is not None:
        run.observer.close()  # the last events are in the file then
        await_mirror(run)
    if run.group.rank == 0:
        record(place, DONE, "done", run.step)
    if run.mirror is not None:
        run.mirror.request()
        error = run.mirror.finish(LEAVE_S)
        if error is not None:
            run.console.say(f"the mirror has all of the run but its verdict: {error}")


def leave_mirror(run: Run) -> None:
    """Gives the mirror of a run that did not come to its end a few seconds, for the log and the verdict."""
    if run.mirror is not None:
        run.mirror.request()
        run.mirror.finish(LEAVE_S)


def take_lease(group: Group, run_dir: RunDir, env: Mapping[str, str]) -> leases.Lease | None:
    """Takes the run's lease on rank 0; where that is refused, every rank raises. Only then may run_dir be touched."""
    held: list[leases.Lease] = []

    def take() -> None:
        owner = leases.Owner.of_this_process(env)
        held.append(leases.acquire(run_dir.lease, owner, lambda text: print(text, flush=True)))

    on_rank_zero(group, take)
    return held[0] if held else None


def begin(prepared: Prepared, place: Place, threads: int, start: Start) -> None:
    """Says what is about to run; rank 0 writes recipe and environment, and removes what was never committed."""
    recipe, console = prepared.recipe, place.console
    console.say(
        f"{recipe.task}: {prepared.manifest.num_samples} samples of {len(prepared.manifest.classes)} classes, "
        f"{recipe.train.steps} steps of {recipe.train.global_batch} on {place.group.world_size} ranks, "
        f"ZeRO stage {recipe.engine.zero_stage}, {recipe.engine.precision}, {threads} threads a rank, "
        f"{recipe.data.canonical_streams} canonical streams, {prepared.order.steps_per_epoch} steps an epoch, "
        f"{decode_workers(recipe.data, place)} decode processes a rank"
    )

    def write() -> None:
        verdicts.clear(place.run_dir.verdict)
        # What was allowed once is not for ever: the run may be gone on with from this file.
        once = dataclasses.replace(recipe, allow_config_change=False)
        publish.write_bytes(place.run_dir.config, to_yaml(once).encode())
        publish.write_json(place.run_dir.environment, environment(place, threads))
        # Otherwise the damaged ones would stay the newest: sampled from, and kept by pruning.
        for found in start.damaged:
            console.say(f"set aside as {committed.quarantine(found)}")
        for path in start.checkpointer.sweep():
            console.say(f"removed {path}, which was never committed")
        publish.remove_folder(place.run_dir.dry_run)
        for line in start.snapshots.begin_at(start.commit):
            console.say(line)

    on_rank_zero(place.group, write)
