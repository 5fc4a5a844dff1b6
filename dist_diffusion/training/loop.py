"""How a run runs: batch after batch, observe, commit when due, stop when agreed."""

import torch

from dist_diffusion.data.loader import Batch
from dist_diffusion.data.replacement import HOW_TO_FIND_ALL
from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.distributed.agreement import gather, sum_of, wait_for_all
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.drift import check_replicas
from dist_diffusion.engine.ds_config import micro_batch
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.errors import (
    DataError,
    NonFiniteError,
    RunInUseError,
    StoppedError,
    StorageError,
    alike,
)
from dist_diffusion.tasks.task import Log, TaskBatch, added
from dist_diffusion.training.looks import look_at, put_off
from dist_diffusion.training.state import Run


def run_loop(run: Run) -> None:
    """Trains from run.step to train.steps and commits the end. Raises StoppedError after an agreed stop."""
    recipe = run.recipe
    run.where.enter("first_step", run.step)
    if run.step < recipe.train.steps:
        await_data(run)
    while run.step < recipe.train.steps:
        run.where.at("data")
        with run.observer.waiting_for_data():
            batch = next(run.loader)
        result, log = train_step(run, batch)
        run.step = batch.step + 1
        run.where.at("agree")
        stop = boundary(run, batch)
        run.observer.record(run.step, batch.digest, result, log)
        watch_for_divergence(run, result)
        if is_multiple(run.step, recipe.checkpoint.every) and run.step < recipe.train.steps:
            settle(run)
            save(run)
        elif is_multiple(run.step, recipe.engine.drift_check_every):
            check_replicas(run.engine, run.group, run.step)
        if stop:
            finish(run)
            with alike():
                raise StoppedError(
                    f"stopped at step {run.step} as asked; the state is saved: run the same command again"
                )
        run.where.enter("step", run.step)
    finish(run)


def await_data(run: Run) -> None:
    """Until every rank has its first batch: the first shards of a remote set may take long to arrive."""
    run.where.at("data")

    def is_ready() -> bool:
        ready = run.loader.is_ready
        # Once: whereabouts compare ranks by how many moves they have made, and this is asked many times.
        if ready and run.where.spot.stage == "data":
            run.where.at("others")
        return ready

    wait_for_all(run.group, is_ready)


def train_step(run: Run, batch: Batch) -> tuple[StepResult, Log]:
    """One optimizer step over this rank's micro-batches, and the log of this rank's samples."""
    micros = micro_batches(batch, micro_batch(run.recipe, run.group.world_size), run.group.device)
    logs: list[Log] = []
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss_of(i: int) -> torch.Tensor:
        made = run.task.loss(run.engine, micros[i])
        logs.append(made.log)
        if made.seen is not None:
            seen.append(made.seen)
        return made.loss

    result = run.engine.step(batch.step, len(micros), loss_of, run.where.at)
    if run.task.history is not None and result.applied:
        run.task.history = update_history(run.task.history, run.group, seen)
    return result, added(logs)


def update_history(history: LossHistory, group: Group, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> LossHistory:
    """The history with all ranks' losses of this step, in order of their positions: alike in every rank."""
    mine = tuple(torch.cat(parts).cpu() for parts in zip(*seen, strict=True))
    t, losses = (torch.cat(parts) for parts in zip(*gather(group, mine), strict=True))
    return history.updated(t, losses)


def micro_batches(batch: Batch, size: int, device: torch.device) -> list[TaskBatch]:
    """The rank's samples in pieces of `size`, on the device."""
    return [
        TaskBatch(
            images=batch.images[i : i + size].to(device, non_blocking=True),
            labels=batch.labels[i : i + size].to(device, non_blocking=True),
            draws={name: drawn[i : i + size].to(device, non_blocking=True) for name, drawn in batch.draws.items()},
        )
        for i in range(0, len(batch.ids), size)
    ]


def watch_for_divergence(run: Run, result: StepResult) -> None:
    """Names every skipped step aloud; NonFiniteError after engine.max_nonfinite_steps in a row."""
    if result.applied:
        run.nonfinite_in_a_row = 0
        return
    if not run.engine.at_the_floor(result.loss_scale):
        run.console.say(f"step {run.step}: overflow at loss scale {result.loss_scale:g}; the update is skipped")
        return
    run.nonfinite_in_a_row += 1
    run.console.say(f"step {run.step}: gradients are not finite; the update is skipped on all ranks")
    if run.nonfinite_in_a_row >= run.recipe.engine.max_nonfinite_steps:
        with alike():
            raise NonFiniteError(
                f"gradients were not finite for {run.nonfinite_in_a_row} steps in a row, up to step {run.step}: lower "
                "optim.lr or use engine.precision=fp32; the last commit is untouched"
            )


def boundary(run: Run, batch: Batch) -> bool:
    """What the ranks agree on after a step. True where one was asked to stop."""
    lease_lost = run.lease is not None and run.lease.lost
    mine = [run.stop.requested, run.checkpointer.finished, lease_lost, len(batch.replaced)]
    stop, saved, lost, replaced = sum_of(run.group, torch.tensor(mine, dtype=torch.int64)).tolist()
    if replaced:
        report_replaced(run, batch)
    if lost:
        with alike():
            raise RunInUseError("another process has taken over this run directory: this one must end")
    run.stopping = stop > 0
    if saved:
        settle(run)
    return run.stopping


def report_replaced(run: Run, batch: Batch) -> None:
    """Names all ranks' samples of this step that others stand for; DataError once there are too many."""
    for share in gather(run.group, batch.replaced):
        for replaced in share:
            run.console.say(f"step {run.step}: {replaced}")
            run.observer.count_replaced(replaced)
    options = run.recipe.data
    count, images = run.observer.replaced_samples, max(run.step * run.recipe.train.global_batch, run.epoch_images)
    if count > options.max_replaced_share * images:
        with alike():
            raise DataError(
                f"{count} samples could not be decoded up to step {run.step}: more than data.max_replaced_share="
                f"{options.max_replaced_share:g} of {images} images. The log names them; {HOW_TO_FIND_ALL}"
            )


def is_multiple(step: int, every: int) -> bool:
    """Whether something that is done every so many steps, 0 for never, is due."""
    return every > 0 and step % every == 0


def save(run: Run) -> None:
    """Begins a commit of the present state, once it is known to be the same in every rank."""
    if run.recipe.engine.drift_check_every:
        check_replicas(run.engine, run.group, run.step)
    kept = {**run.data, **run.observer.totals, "commits": run.commits + 1}
    history = run.task.history
    with run.where.during("save"):
        run.checkpointer.save(run.engine, run.step, kept, None if history is None else history.to_json())


def settle(run: Run) -> None:
    """Waits for the commit in flight, if any, says how it ended, and has a look at it."""
    if not run.checkpointer.in_flight:
        return
    with run.where.during("save"):
        outcome = run.checkpointer.settle()
    if outcome.error is not None:
        run.console.say(f"the commit of step {outcome.step} failed, the one before stands: {outcome.error}")
        return
    run.saved_step = outcome.step
    run.commits += 1
    run.console.say(f"committed step {outcome.step} in {outcome.seconds:.1f} s")
    if run.mirror is not None:
        run.mirror.request()
    if run.stopping:
        put_off(run, outcome.step)
    else:
        look_at(run, outcome.step)


def finish(run: Run) -> None:
    """Commits the present state if it is not committed yet; StorageError where that fails."""
    settle(run)
    if run.saved_step == run.step:
        return
    save(run)
    settle(run)
    if run.saved_step != run.step:
        with alike():
            raise StorageError(f"step {run.step} could not be committed (see above): mend that, then run again")
