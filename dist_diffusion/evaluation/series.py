"""Sampling jobs that differ in their settings alone, of one model: a sweep over guidance, a table of samplers.

OUT/series.json pins the models and threads of all points, OUT/exports/ holds the models, OUT/reference.npz what was
computed of the reference; OUT/points/NAME is a point's sampling job and, once it is evaluated, has its metrics.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dist_diffusion.config.points import Point
from dist_diffusion.config.schema import EvaluateRecipe, SampleRecipe
from dist_diffusion.errors import ConfigError, StorageError
from dist_diffusion.sampling import exports, job
from dist_diffusion.sampling.exports import Pinned, Sources, Wanted, wanted_models
from dist_diffusion.sampling.generate import make_generator
from dist_diffusion.sampling.run import by_role, open_low_res
from dist_diffusion.storage import files, publish
from dist_diffusion.weights import files as weight_files
from dist_diffusion.weights.load import load_model

FORMAT = 1
SERIES, EXPORTS = "series.json", "exports"


@dataclass(frozen=True)
class Series:
    """Points of one model, and how they are evaluated."""

    out: str
    points: Sequence[Point]
    evaluation: EvaluateRecipe
    """Its `samples` and `out` are each point's."""


@dataclass(frozen=True)
class Opened:
    """A series as every start finds it: the recipes of its points name the copies of its models."""

    series: Series
    ema: str | None
    threads: int
    known: Pinned
    """The models that are pinned."""
    sources: Sources
    """Those that will be."""
    image_size: int
    num_classes: int
    """The model's; 0 where it has none."""
    info: dict[str, Any]
    """What the model's export says of itself."""
    notes: list[str]


def open_series(series: Series, device: str, threads: int) -> Opened:
    """Looks at what there is, writes nothing. ConfigError where models and settings do not fit together, or `out` holds
    points of other settings or models.
    """
    ema, folder, path = series.points[0].recipe.ema, files.join(series.out, EXPORTS), files.join(series.out, SERIES)
    wanted = {role: given for point in series.points for role, given in wanted_models(point.recipe).items()}
    before = _read(path) if files.exists(path) else {"ema": ema, "threads": threads, "models": {}}
    notes, known = _compare(series.out, before, wanted, ema, threads), before["models"]
    copies = {role: files.join(folder, exports.copy_name(role)) for role in wanted}
    points = [replace(point, recipe=_of_copies(point.recipe, copies)) for point in series.points]
    made = [point.name for point in points if _is_made(point, known, device)]
    sources = exports.find_sources({role: given for role, given in wanted.items() if role not in known}, ema)
    paths = {role: sources[role][1] if role in sources else copies[role] for role in wanted}
    _try_out([point for point in points if point.name not in made], paths)
    recipe, info = weight_files.header(paths["model"])
    size, num_classes = recipe.model.image_size, recipe.model.num_classes or 0
    assert size is not None
    begun = replace(series, points=points)
    return Opened(begun, ema, before["threads"], known, sources, size, num_classes, info, notes)


def _read(path: str) -> dict[str, Any]:
    content: dict[str, Any] = files.read_json(path)
    if content.get("format") != FORMAT:
        raise StorageError(f"{path} is of format {content.get('format')}; this version reads format {FORMAT}")
    return content


def _compare(out: str, before: dict[str, Any], wanted: Wanted, ema: str | None, threads: int) -> list[str]:
    """What to say of a series that has begun."""
    if before["ema"] != ema:
        raise ConfigError(f"out={out} was begun with ema={before['ema']}, not {ema}: give that, or another out")
    pinned = before["models"]
    exports.check_copies(files.join(out, EXPORTS), pinned)
    said = exports.notes(out, pinned, {role: given for role, given in wanted.items() if role in pinned}, ema)
    if before["threads"] != threads:
        said.append(f"{out} was begun with {before['threads']} threads a rank: using them, for the same bytes")
    return said


def _of_copies(recipe: SampleRecipe, copies: dict[str, str]) -> SampleRecipe:
    """The recipe with the pinned exports in place of the paths that were given."""
    others: dict[str, Any] = {role: copies[role] for role in wanted_models(recipe) if role != "model"}
    return replace(recipe, model=copies["model"], ema=None, guidance=replace(recipe.guidance, **others))


def _is_made(point: Point, pinned: Pinned, device: str) -> bool:
    """Whether its job has begun. ConfigError where it has with other settings, models or another kind of device."""
    found = job.look_up(point.recipe, device)
    if found is None:
        return False
    for role, model in found.models.items():
        if model["sha256"] != pinned.get(role, {}).get("sha256"):
            raise ConfigError(f"{found.out} was made with another {role}: remove that folder, or give another out")
    return True


def _try_out(points: Sequence[Point], paths: dict[str, str]) -> None:
    """ConfigError where a point's models and settings do not fit together."""
    loaded = {role: load_model(path) for role, path in paths.items()} if points else {}
    for point in points:
        recipe = point.recipe
        models = by_role({role: loaded[role] for role in wanted_models(recipe)})
        make_generator(models, recipe.sampler, recipe.guidance, recipe.seed, "cpu", open_low_res(recipe))


def link_models(point: Point) -> None:
    """Gives a point that has not begun the series' copies under second names, so that its job makes none of its own."""
    out = point.recipe.out
    assert out is not None
    if not job.is_job(out):
        for role, copy in wanted_models(point.recipe).items():
            publish.link(copy, files.join(out, exports.copy_name(role)))


def pin_models(opened: Opened) -> None:
    """Copies the models that are not pinned yet."""
    series = opened.series
    models = opened.known | exports.pin(files.join(series.out, EXPORTS), opened.sources)
    content = {"format": FORMAT, "ema": opened.ema, "threads": opened.threads, "models": models}
    publish.write_json(files.join(series.out, SERIES), content)
