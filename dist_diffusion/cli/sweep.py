"""`dist-diffusion sweep`."""

from collections.abc import Sequence

from dist_diffusion.cli.recipe import PEER_TIMEOUT_S, ready
from dist_diffusion.config.load import load
from dist_diffusion.config.sampling_checks import check_sweep
from dist_diffusion.config.schema import SweepRecipe
from dist_diffusion.distributed.environment import Topology


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Makes the points of out that are missing, and its report."""
    recipe = ready(lambda: load(SweepRecipe, config, overrides), check_sweep, print_config, topology)
    if recipe is None:
        return
    from dist_diffusion.distributed import group as groups
    from dist_diffusion.evaluation.sweep import run_sweep
    from dist_diffusion.observe.console import Console

    threads = groups.set_threads(recipe.threads, topology)
    group = groups.start(topology, PEER_TIMEOUT_S)
    run_sweep(recipe, group, threads, Console(None, topology.rank))
    groups.stop()
