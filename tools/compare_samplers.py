"""A table of network evaluations against FD: samplers x steps x seeds on one model, see docs/sweep.md.

It can be stopped at any moment: the same command goes on in OUT. Under an MPI launcher all ranks sample.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.cli.main import leave
from dist_diffusion.cli.recipe import PEER_TIMEOUT_S
from dist_diffusion.config.load import load_options
from dist_diffusion.config.points import Point, folder_of
from dist_diffusion.config.sampling_checks import check_sample
from dist_diffusion.config.schema import EvaluateRecipe, SampleRecipe
from dist_diffusion.diffusion.spacing import spacing_of
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.environment import Topology, resolve
from dist_diffusion.errors import ConfigError, DistDiffusionError
from dist_diffusion.evaluation.evaluator import Finished
from dist_diffusion.evaluation.run import run_series
from dist_diffusion.evaluation.series import Opened, Series
from dist_diffusion.evaluation.tables import distance_name, markdown
from dist_diffusion.observe.console import Console
from dist_diffusion.storage import files, publish

TABLE = "table.json"
FORMATS = {
    **dict.fromkeys(("sampler", "spacing", "steps"), ""),
    **{"network_evaluations": "g", "seed": "", "fd": ".1f", "kid": ".4f", "score": ".2f"},
    **{"precision": ".3f", "recall": ".3f", "seconds": ".0f"},
}
"""The printed columns."""
OF_THE_POINTS = {
    **{"model": "MODEL", "out": "OUT", "num_samples": "--num-samples", "seed": "--seeds", "sampler.steps": "--steps"},
    **dict.fromkeys(("sampler.name", "sampler.spacing"), "--samplers"),
}
"""Settings that --set would give in vain, and what gives them."""


def points_of(base: SampleRecipe, samplers: Sequence[str], steps: Sequence[str], seeds: Sequence[int]) -> list[Point]:
    """A point for each combination, once; a sampler is NAME, NAME:SPACING, or NAME:SPACING:STEPS which has steps of its
    own. ConfigError where one cannot be.
    """
    assert base.out is not None
    points = {}
    each = [part for sampler in samplers for part in with_steps(sampler, steps)]
    for (name, spacing, count), seed in itertools.product(each, seeds):
        chosen = load_options(SampleRecipe, [f"sampler.name={name}", f"sampler.spacing={spacing or 'null'}"]).sampler
        options = replace(base.sampler, name=chosen.name, spacing=spacing_of(chosen), steps=count)
        folder = f"{options.name}-{options.spacing}-{count.replace(',', '_')}-seed{seed}"
        recipe = replace(base, sampler=options, seed=seed, out=folder_of(base.out, folder))
        check_sample(recipe)
        points[folder] = Point(folder, recipe)
    return list(points.values())


def with_steps(sampler: str, steps: Sequence[str]) -> list[tuple[str, str, str]]:
    """Name, spacing (perhaps empty) and steps, for each of its own steps or else of `steps`."""
    name, spacing, own = [*sampler.split(":", 2), "", ""][:3]
    counts = [own] if own else steps
    if not counts:
        raise ConfigError(f"--samplers {sampler} gives no steps: add them as NAME:SPACING:STEPS, or give --steps")
    return [(name, spacing, count) for count in counts]


def row(finished: Finished) -> dict[str, Any]:
    """A point's line of the table."""
    recipe, metrics, cost = finished.point.recipe, finished.metrics, finished.cost
    steps = recipe.sampler.steps
    return {
        "sampler": recipe.sampler.name,
        "spacing": recipe.sampler.spacing,
        "steps": int(steps) if steps.isdecimal() else steps,
        "network_evaluations": cost.network_evaluations_per_image,
        "seed": recipe.seed,
        "num_samples": recipe.num_samples,
        **{key: metrics[key] for key in ("fd", "kid", "score", "precision", "recall")},
        "seconds": cost.seconds,
    }


def table(finished: Sequence[Finished]) -> str:
    """In Markdown."""
    titles = {"network_evaluations": "evaluations", "fd": distance_name(finished[0].metrics), "kid": "KID"}
    names = [titles.get(key, key) for key in FORMATS]
    return markdown(names, [[f"{row(point)[key]:{form}}" for key, form in FORMATS.items()] for point in finished])


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="a run, RUN@STEP, or an export")
    parser.add_argument("reference", metavar="REFERENCE", help="npz, sample job, shard folder or saved statistics")
    parser.add_argument("out", metavar="OUT", help="folder of the points, and of table.json")
    parser.add_argument(
        "--samplers",
        nargs="+",
        required=True,
        metavar="NAME[:SPACING[:STEPS]]",
        help="the spacing is by default what suits the sampler",
    )
    parser.add_argument("--steps", nargs="+", default=[], metavar="STEPS", help="of the samplers that give none")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED")
    parser.add_argument("--num-samples", type=int, default=2000, metavar="N")
    parser.add_argument("--num-reference", type=int, metavar="N", help="images used of a shard folder (default all)")
    parser.add_argument("--json", metavar="FILE", help="where table.json is written as well")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of `sample`")
    return parser.parse_args()


def checked(settings: Sequence[str]) -> Sequence[str]:
    """What --set gives. ConfigError where the table has its own."""
    for setting in settings:
        key = setting.partition("=")[0]
        if key in OF_THE_POINTS:
            raise ConfigError(f"--set {setting}: give {OF_THE_POINTS[key]} instead")
    return settings


def run(arguments: argparse.Namespace, topology: Topology) -> None:
    """Makes what is missing, and the table after each point; prints it at the end."""
    given = [f"model={arguments.model}", f"out={arguments.out}", f"num_samples={arguments.num_samples}"]
    base = load_options(SampleRecipe, [*checked(arguments.set), *given])
    points = points_of(base, arguments.samplers, arguments.steps, arguments.seeds)
    evaluation = EvaluateRecipe(
        reference=arguments.reference, num_reference=arguments.num_reference, batch_size=base.batch_size
    )

    def write(_: Opened, finished: list[Finished]) -> None:
        rows = [row(point) for point in finished]
        for path in (files.join(arguments.out, TABLE), arguments.json):
            if path is not None:
                publish.write_json(path, rows)

    threads = groups.set_threads(base.threads, topology)
    group = groups.start(topology, PEER_TIMEOUT_S)
    console = Console(None, topology.rank)
    finished = run_series(Series(arguments.out, points, evaluation), group, threads, console, write)
    console.say(table(finished))
    groups.stop()


def main() -> None:
    """Never returns."""
    arguments, topology = parsed(), None
    try:
        topology = resolve(os.environ)
        run(arguments, topology)
    except DistDiffusionError as error:
        leave(error, topology)
    leave(None, topology)


if __name__ == "__main__":
    main()
