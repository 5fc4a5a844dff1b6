"""`-m benchmarks.options_ranks REPORT SECONDS`: a training step with each engine option, in every rank."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from benchmarks.setting import (
    BATCH,
    BELOW_FULL_RESOLUTION,
    our_engine,
    our_network,
    pieces,
    process_group,
    random_weights,
    recipe_of,
    step_of,
    task_batch,
)
from benchmarks.timing import alternate_measured
from dist_diffusion.config.schema import DiffusionRecipe, EmaOptions, WatchdogOptions
from dist_diffusion.distributed.agreement import broadcast, gather
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.watchdog import Watchdog
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.engine.drift import check_replicas
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.tasks.build import build as build_task
from dist_diffusion.training.guards import limits

PLAIN = "plain"
WATCHED_S = 5.0
REPEATS = 20
"""Of what is timed alone."""
WEIGHTS = random_weights(BELOW_FULL_RESOLUTION)


def main() -> None:
    """Rank 0 writes what was measured."""
    report, seconds = sys.argv[1:]
    with process_group() as group:
        engines = {name: our_engine(recipe, WEIGHTS, group) for name, recipe in recipes(group.world_size).items()}
        found = {
            "steps": steps(engines, group, float(seconds)),
            "parts": parts(engines, group),
            "activations": {name: activations(recompute) for name, recompute in (("kept", False), ("again", True))},
        }
        if group.rank == 0:
            Path(report).write_text(json.dumps(found))


def recipes(world_size: int) -> dict[str, DiffusionRecipe]:
    """By option; the plain one is stage 1 in fp32 with one average, one micro-batch a rank, nothing clipped."""
    plain = recipe_of(BELOW_FULL_RESOLUTION, "fp32")

    def engine(**options: Any) -> DiffusionRecipe:
        return replace(plain, engine=replace(plain.engine, **options))

    def accumulating(times: int) -> DiffusionRecipe:
        return replace(plain, train=replace(plain.train, micro_batch=BATCH // world_size // times))

    return {
        PLAIN: plain,
        "train.micro_batch: 2 to accumulate": accumulating(2),
        "train.micro_batch: 4 to accumulate": accumulating(4),
        "optim.clip_norm=1": replace(plain, optim=replace(plain.optim, clip_norm=1.0)),
        "engine.recompute=true": engine(recompute=True),
        "engine.precision=autocast": engine(precision="autocast"),
        "engine.precision=bf16": engine(precision="bf16"),
        **{f"engine.zero_stage={stage}": engine(zero_stage=stage) for stage in (0, 2, 3)},
        "engine.offload_optimizer=true": engine(offload_optimizer=True),
        "4 averages": replace(plain, ema=EmaOptions(decays=(0.99, 0.999, 0.9999, 0.99999))),
    }


def steps(engines: dict[str, TrainingEngine], group: Group, seconds: float) -> dict[str, list[float]]:
    """Seconds of whole steps, of the slowest rank."""

    def timed(step: Callable[[], None]) -> float:
        dist.barrier(group.control)
        start = time.perf_counter()
        step()
        return max(gather(group, time.perf_counter() - start))

    candidates = {name: partial(timed, step_of(engine)) for name, engine in engines.items()}
    return alternate_measured(candidates, seconds, lambda time_is_up: broadcast(group, time_is_up))


def parts(engines: dict[str, TrainingEngine], group: Group) -> dict[str, float]:
    """What some options add to a step, timed alone: seconds of an update of averages or of a comparison of replicas,
    and the share of a core that the watchdog's threads take.
    """
    one, four = engines[PLAIN], engines["4 averages"]
    return {
        "1 average": alone(lambda: one.ema.update(1)),
        "4 averages": alone(lambda: four.ema.update(1)),
        "drift check": alone(lambda: check_replicas(one, group, 1)),
        "whereabouts": alone(partial(mark_a_step, Whereabouts())),
        "watchdog": watchdog_share(group),
    }


def alone(work: Callable[[], object]) -> float:
    """Seconds, the mean over calls after one that is not counted."""
    work()
    start = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - start) / REPEATS


def mark_a_step(where: Whereabouts) -> None:
    """What the loop tells the watchdog in one step."""
    for stage in ("data", "forward", "backward", "update", "agree"):
        where.at(stage)
    where.enter("step", 1)


def watchdog_share(group: Group) -> float:
    """CPU seconds a second of its threads while this process sleeps, less those of the sleep alone."""

    def cpu_share() -> float:
        start = time.process_time()
        time.sleep(WATCHED_S)
        return (time.process_time() - start) / WATCHED_S

    alone, where = cpu_share(), Whereabouts()
    watchdog = Watchdog(where, limits(WatchdogOptions()), group.rank, group.world_size, print, print, "")
    watchdog.start()
    try:
        return max(0.0, cpu_share() - alone)
    finally:
        watchdog.stop()


def activations(recompute: bool) -> int:
    """Most bytes that a forward and a backward pass of a rank's share hold at once, beside weights and gradients."""
    network = our_network(BELOW_FULL_RESOLUTION, WEIGHTS, recompute)
    task = build_task(recipe_of(BELOW_FULL_RESOLUTION, "fp32"), torch.device("cpu"))
    (batch,) = pieces(task_batch(0), range(BATCH // 2), BATCH // 2)
    task.loss(network, batch).loss.backward()  # makes the gradients
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task.loss(network, batch).loss.backward()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


if __name__ == "__main__":
    main()
