"""Runs the points of a series: each is sampled on all ranks, then evaluated on rank 0."""

from collections.abc import Callable
from functools import partial

from dist_diffusion.distributed.agreement import on_rank_zero
from dist_diffusion.distributed.group import Group, set_deterministic
from dist_diffusion.evaluation.evaluator import Evaluator, Finished
from dist_diffusion.evaluation.series import Opened, Series, link_models, open_series, pin_models
from dist_diffusion.observe.console import Console
from dist_diffusion.sampling.run import run_job

Report = Callable[[Opened, list[Finished]], None]
"""What is written after every point, of those that are finished, in the order of the series."""


def run_series(series: Series, group: Group, threads: int, console: Console, report: Report) -> list[Finished]:
    """Samples on all ranks and evaluates on rank 0 what is not finished; `report` is called on rank 0."""
    # Before anything runs on a GPU: cuBLAS looks once for the workspace that this asks for, and sampling needs it.
    set_deterministic(True)
    opened = on_rank_zero(group, lambda: open_series(series, group.device.type, threads))
    for note in opened.notes:
        console.say(note)
    evaluator = Evaluator(opened, console.say)
    on_rank_zero(group, evaluator.check)
    on_rank_zero(group, lambda: pin_models(opened))
    done = on_rank_zero(group, evaluator.finished)
    points = opened.series.points

    def write() -> None:
        report(opened, [done[point.name] for point in points if point.name in done])

    if done:
        on_rank_zero(group, write)
    for number, point in enumerate(points, 1):
        console.say(f"[{number}/{len(points)}] {point.name}{': done before' if point.name in done else ''}")
        if point.name not in done:
            on_rank_zero(group, partial(link_models, point))
            path = run_job(point.recipe, group, opened.threads, console)
            done[point.name] = on_rank_zero(group, partial(evaluator.evaluate, point, path))
            on_rank_zero(group, write)
    return [done[point.name] for point in points]
