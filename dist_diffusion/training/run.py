"""A training command from recipe to verdict: assemble, run, and say how it ended."""

import os
import platform
import sys
import traceback
from collections.abc import Mapping
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
from dist_diffusion.errors import BUG, DONE, CheckpointError, DistDiffusionError, PeerLostError
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
    progress: list[Run] = []
    try:
        describe_start(prepared, run_dir, group, threads, console, env)
        run = assemble(prepared, run_dir, group, console, stop, lease)
        progress.append(run)
        run_loop(run)
        console.say(f"done: {run.step} steps")
        if group.rank == 0:
            verdicts.record(run_dir.verdict, verdict(DONE, "done", group, run.step, env, run_dir))
    except BaseException as error:
        raise reported(error, progress, group, env, run_dir, console) from error
    finally:
        for run in progress:
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


def describe_start(
    prepared: Prepared, run_dir: RunDir, group: Group, threads: int, console: Console, env: Mapping[str, str]
) -> None:
    """Writes the resolved recipe and the environment, and says what is about to run."""
    recipe = prepared.recipe
    console.say(
        f"{recipe.task}: {prepared.manifest.num_samples} samples of {len(prepared.manifest.classes)} classes, "
        f"{recipe.train.steps} steps of {recipe.train.global_batch} on {group.world_size} ranks, "
        f"ZeRO stage {recipe.engine.zero_stage}, {recipe.engine.precision}, {threads} threads a rank, "
        f"{recipe.data.canonical_streams} canonical streams, {prepared.order.steps_per_epoch} steps an epoch"
    )
    if group.rank == 0:
        publish.write_bytes(run_dir.config, to_yaml(recipe).encode())
        publish.write_json(run_dir.environment, environment(group, threads, env))


def environment(group: Group, threads: int, env: Mapping[str, str]) -> dict[str, object]:
    """What a later reader wants to know of this start."""
    packages = ("dist-diffusion", "torch", "deepspeed", "webdataset", "numpy", "safetensors")
    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "world_size": group.world_size,
        "device": str(group.device),
        "threads": threads,
        "launch_id": verdicts.launch_id(env),
    }


def version(package: str) -> str:
    """The installed version, or that it runs from a source tree."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def assemble(
    prepared: Prepared,
    run_dir: RunDir,
    group: Group,
    console: Console,
    stop: StopFlag,
    lease: leases.Lease | None,
) -> Run:
    """Task, network, engine and data, at the newest commit's step or at step 0."""
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


def verdict(code: int, reason: str, group: Group, step: int | None, env: Mapping[str, str], run_dir: RunDir) -> Verdict:
    """A verdict of this launch, as this rank sees it."""
    log = os.path.relpath(run_dir.log(group.rank), run_dir.path)
    return Verdict(code, reason, group.rank, step, verdicts.launch_id(env), log=log)


def reported(
    error: BaseException,
    progress: list[Run],
    group: Group,
    env: Mapping[str, str],
    run_dir: RunDir,
    console: Console,
) -> BaseException:
    """The error to raise in place of `error`, after its verdict is written and its log line made."""
    if groups.is_peer_loss(error):
        error = PeerLostError(f"peer lost: {str(error).splitlines()[0]}")
    known = isinstance(error, DistDiffusionError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, DistDiffusionError) else BUG
    if not known:
        console.error("".join(traceback.format_exception(error)).rstrip())
    if group.rank == 0 or not getattr(error, "agreed", False):
        step = progress[0].step if progress else None
        verdicts.record(run_dir.verdict, verdict(code, reason, group, step, env, run_dir))
    return error
