"""A training command from recipe to verdict: assemble, run, and say how it ended."""

import os
import platform
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import torch

from dist_diffusion import draws
from dist_diffusion.config.load import from_dict, to_yaml
from dist_diffusion.config.protected import changes, refuse_protected
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.agreement import broadcast, on_rank_zero
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.signals import StopFlag
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import (
    DONE,
    CheckpointError,
    DistDiffusionError,
    InternalError,
    PeerLostError,
    StoppedError,
)
from dist_diffusion.models.build import build as build_model
from dist_diffusion.observe.console import Console
from dist_diffusion.runs import lease as leases
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.runs.verdict import Verdict
from dist_diffusion.storage import committed, publish
from dist_diffusion.storage.committed import Committed
from dist_diffusion.tasks.build import build as build_task
from dist_diffusion.training.loop import Run, run_loop
from dist_diffusion.training.observer import Observer
from dist_diffusion.training.prepare import Prepared, make_loader, prepare


@dataclass(frozen=True)
class Place:
    """Where and as whom this process runs."""

    run_dir: RunDir
    group: Group
    console: Console
    launch_id: str
    """Rank 0's: a launcher may not hand its variables to other hosts."""


def train(recipe: TrainRecipe, topology: Topology, env: Mapping[str, str]) -> None:
    """Starts or resumes the run of recipe.run_dir. Errors leave a verdict there once this launch holds its lease."""
    threads = groups.set_threads(recipe.threads, topology)
    stop = StopFlag()
    stop.install()
    group = groups.start(topology, recipe.engine.timeout_s)
    prepared = prepare(recipe, group)
    assert recipe.run_dir is not None
    run_dir = RunDir(recipe.run_dir)
    lease = take_lease(group, run_dir, env)
    console = Console(run_dir.log(group.rank), group.rank)
    place = Place(run_dir, group, console, broadcast(group, verdicts.launch_id(env)))
    assembled: list[Run] = []
    try:
        describe_start(prepared, place, threads)
        assembled.append(assemble(prepared, place, stop, lease))
        run_loop(assembled[0])
        console.say(f"done: {recipe.train.steps} steps")
        if group.rank == 0:
            record(place, DONE, "done", assembled[0].step)
    except BaseException as error:
        raise reported(error, place, assembled[0].step if assembled else None) from error
    finally:
        for run in assembled:
            run.observer.close()
            run.loader.close()
        if lease is not None:
            lease.release()
    groups.stop()


def take_lease(group: Group, run_dir: RunDir, env: Mapping[str, str]) -> leases.Lease | None:
    """Takes the run's lease on rank 0; where that is refused, every rank raises. Only then may run_dir be touched."""
    held: list[leases.Lease] = []

    def take() -> None:
        owner = leases.Owner.of_this_process(env)
        held.append(leases.acquire(run_dir.lease, owner, lambda text: print(text, flush=True)))
        verdicts.clear(run_dir.verdict)

    on_rank_zero(group, take)
    return held[0] if held else None


def describe_start(prepared: Prepared, place: Place, threads: int) -> None:
    """Writes the resolved recipe and the environment, and says what is about to run."""
    recipe = prepared.recipe
    place.console.say(
        f"{recipe.task}: {prepared.manifest.num_samples} samples of {len(prepared.manifest.classes)} classes, "
        f"{recipe.train.steps} steps of {recipe.train.global_batch} on {place.group.world_size} ranks, "
        f"ZeRO stage {recipe.engine.zero_stage}, {recipe.engine.precision}, {threads} threads a rank, "
        f"{recipe.data.canonical_streams} canonical streams, {prepared.order.steps_per_epoch} steps an epoch"
    )
    if place.group.rank == 0:
        publish.write_bytes(place.run_dir.config, to_yaml(recipe).encode())
        publish.write_json(place.run_dir.environment, environment(place, threads))


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


def assemble(prepared: Prepared, place: Place, stop: StopFlag, lease: leases.Lease | None) -> Run:
    """Task, network, engine and data, at the newest commit's step or at step 0."""
    group, console, run_dir = place.group, place.console, place.run_dir
    recipe = prepared.recipe
    torch.use_deterministic_algorithms(recipe.engine.deterministic)
    task = build_task(recipe)
    attempt = broadcast(group, committed.new_attempt())
    # Found and compared before the engine is built: a checkpoint of another recipe is refused in seconds.
    checkpointer = Checkpointer(run_dir.checkpoints, recipe, group, attempt, console.say)
    commit = checkpointer.newest()
    if commit is not None:
        check_same_run(prepared, commit, console)
    torch.manual_seed(draws.key(recipe.seed, "weights", 0))
    engine = TrainingEngine(build_model(recipe.model), recipe, group)
    step = 0
    if commit is None:
        console.say("no committed checkpoint: starting at step 0")
    else:
        checkpointer.restore(engine, commit)
        step = commit.marker["step"]
        console.say(f"resuming at step {step} from {commit.path}")
    if group.rank == 0:
        for path in checkpointer.sweep():
            console.say(f"removed {path}, which was never committed")
    return Run(
        recipe=recipe,
        group=group,
        task=task,
        engine=engine,
        loader=make_loader(prepared, task.draws, group, step),
        checkpointer=checkpointer,
        observer=Observer(run_dir, recipe, group, console, step),
        console=console,
        stop=stop,
        lease=lease,
        extra={"manifest": prepared.manifest.checksum, "classes": list(prepared.manifest.classes)},
        step=step,
        saved_step=step if commit is not None else -1,
    )


def check_same_run(prepared: Prepared, commit: Committed, console: Console) -> None:
    """Refuses a commit of other data or another recipe; harmless differences are said aloud."""
    before, now = commit.marker["extra"]["manifest"], prepared.manifest.checksum
    if before != now:
        raise agreed(
            CheckpointError(
                f"{commit.path} was trained on a manifest with checksum {before[:12]}, data.shards="
                f"{prepared.recipe.data.shards} has {now[:12]}: give the data it was made with, or another run_dir"
            )
        )
    changed = changes(from_dict(commit.marker["recipe"], commit.path), prepared.recipe)
    try:
        refuse_protected(changed, commit.path)
    except CheckpointError as error:
        raise agreed(error) from None
    for change in changed:
        console.say(f"changed since the commit: {change}")


def agreed(error: DistDiffusionError) -> DistDiffusionError:
    """Marks an error that every rank raises alike."""
    error.agreed = True
    return error


def record(place: Place, code: int, reason: str, step: int | None) -> None:
    """This rank's verdict, unless an earlier one of this launch stands."""
    log = os.path.relpath(place.run_dir.log(place.group.rank), place.run_dir.path)
    found = Verdict(code, reason, place.group.rank, step, place.launch_id, log=log)
    verdicts.record(place.run_dir.verdict, found)


def reported(error: BaseException, place: Place, step: int | None) -> DistDiffusionError:
    """The error to raise in place of `error`, once its verdict is written and its traceback logged."""
    known = as_known(error, place.console)
    if place.group.rank == 0 or not known.agreed:
        record(place, known.exit_code, str(known), step)
    known.recorded = True
    return known


def as_known(error: BaseException, console: Console) -> DistDiffusionError:
    """One of the package's errors: a lost peer, or a bug, where it is not one already."""
    if isinstance(error, DistDiffusionError):
        return error
    if groups.is_peer_loss(error):
        return PeerLostError(f"{verdicts.PEER_LOST}: {str(error).splitlines()[0]}")
    if isinstance(error, KeyboardInterrupt):
        return StoppedError("interrupted; the steps since the last commit are lost: run the same command again")
    console.error("".join(traceback.format_exception(error)).rstrip())
    return InternalError(f"{type(error).__name__}: {error}")
