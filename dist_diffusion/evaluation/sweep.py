"""`dist-diffusion sweep`: guidance scales by mode, from the recipe to a table, a figure and a page."""

import dataclasses
from collections.abc import Sequence
from functools import partial

from dist_diffusion.config.points import guidance_points
from dist_diffusion.config.schema import EvaluateRecipe, SweepRecipe
from dist_diffusion.diffusion.options import GuidanceOptions, SamplerOptions
from dist_diffusion.diffusion.spacing import spacing_of
from dist_diffusion.distributed.group import Group
from dist_diffusion.evaluation import sweep_figures
from dist_diffusion.evaluation.evaluator import Finished
from dist_diffusion.evaluation.plots import svg
from dist_diffusion.evaluation.run import run_series
from dist_diffusion.evaluation.series import Opened, Series
from dist_diffusion.evaluation.sweep_page import Facts, Strip, page
from dist_diffusion.evaluation.sweep_table import Row, in_markdown
from dist_diffusion.evaluation.tables import distance_name
from dist_diffusion.observe.console import Console
from dist_diffusion.sampling.npz_images import NpzImages
from dist_diffusion.storage import files, publish

TABLE, MARKDOWN, FIGURE, REPORT = "table.json", "table.md", "sweep.svg", "report.html"


def run_sweep(recipe: SweepRecipe, group: Group, threads: int, console: Console) -> list[Row]:
    """Makes the points that are missing, and the report after each; returns the table."""
    assert recipe.out is not None
    evaluation = EvaluateRecipe(
        reference=recipe.reference,
        num_reference=recipe.num_reference,
        judge=recipe.judge,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
    )
    series = Series(recipe.out, guidance_points(recipe), evaluation)
    finished = run_series(series, group, threads, console, partial(write_report, recipe))
    console.say(f"wrote {files.join(recipe.out, REPORT)}")
    return [row(point) for point in finished]


def write_report(recipe: SweepRecipe, opened: Opened, finished: Sequence[Finished]) -> None:
    """The table and what shows it, of the points that are finished."""
    out, rows = opened.series.out, [row(point) for point in finished]
    about = facts(recipe, opened, finished)
    publish.write_json(files.join(out, TABLE), [r.as_dict() for r in rows])
    publish.write_bytes(files.join(out, MARKDOWN), in_markdown(about.distance, rows).encode())
    figure = svg(sweep_figures.trade_off(about.distance, rows, about.continuous), standalone=True)
    publish.write_bytes(files.join(out, FIGURE), figure.encode())
    strips = [strip(point, recipe.grid_images) for point in finished] if recipe.grid_images else []
    publish.write_bytes(files.join(out, REPORT), page(about, rows, strips).encode())


def row(finished: Finished) -> Row:
    """A point's line of the table."""
    guidance, metrics, cost = finished.point.recipe.guidance, finished.metrics, finished.cost
    return Row(
        guidance=guidance.mode,
        cfg_scale=guidance.cfg_scale if guidance.mode in ("cfg", "both") else None,
        classifier_scale=guidance.classifier_scale if guidance.mode in ("classifier", "both") else None,
        fd=metrics["fd"],
        kid=metrics["kid"],
        score=metrics["score"],
        precision=metrics["precision"],
        recall=metrics["recall"],
        label_agreement=metrics.get("label_agreement"),
        judge_score=metrics.get("judge_score"),
        network_evaluations=cost.network_evaluations_per_image,
        classifier_evaluations=cost.classifier_evaluations_per_image,
        seconds=cost.seconds,
        images_per_second=cost.images_per_second_per_rank,
    )


def facts(recipe: SweepRecipe, opened: Opened, finished: Sequence[Finished]) -> Facts:
    """What the points have in common."""
    first = finished[0].metrics
    info, classes = opened.info, opened.num_classes
    step = f", {info['average']} of step {info['step']}" if "step" in info and "average" in info else ""
    kind = f"{opened.image_size} px, {f'{classes} classes' if classes else 'no classes'}"
    sampler = dataclasses.replace(recipe.sampler, spacing=spacing_of(recipe.sampler))
    settings = changed(sampler, SamplerOptions(sampler.name, sampler.steps))
    lines = [
        ("model", f"{recipe.model}{step}; {kind}"),
        ("sampler", ", ".join([sampler.name, f"steps {sampler.steps}", *settings])),
        ("guidance", ", ".join(changed(recipe.guidance, GuidanceOptions())) or "scales alone"),
        (
            "samples",
            f"{recipe.num_samples} a point, seed {recipe.seed}: image i has one label and one noise throughout",
        ),
        ("reference", f"{recipe.reference}, {first['num_reference']} images"),
        ("features", f"{first['network']}: {distance_name(first)} is not FID, and not comparable with published FID"),
        *([("judge", recipe.judge)] if recipe.judge else []),
    ]
    return Facts(
        distance=distance_name(first),
        lines=lines,
        warnings=list(dict.fromkeys(text for point in finished for text in point.metrics["warnings"])),
        classes=[str(name) for name in info.get("classes") or []] if classes else [],
        # At these modes' neutral scales there is no guidance; CFG++ has none.
        continuous=("classifier",) if recipe.guidance.cfg_plus_plus else ("cfg", "classifier"),
    )


def changed(options: SamplerOptions | GuidanceOptions, default: SamplerOptions | GuidanceOptions) -> list[str]:
    """The settings that are not as by default."""
    pairs = zip(dataclasses.asdict(options).items(), dataclasses.asdict(default).values(), strict=True)
    return [f"{key} {value}" for (key, value), usual in pairs if value != usual]


def strip(finished: Finished, num: int) -> Strip:
    """The first images of a point."""
    source = NpzImages(finished.samples)
    labels = None if source.labels is None else source.labels[:num].tolist()
    return Strip(source.pixels()[:num], labels)
