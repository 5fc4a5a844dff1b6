"""`dist-diffusion nll`."""

from collections.abc import Sequence

from dist_diffusion.cli.recipe import PEER_TIMEOUT_S, ready
from dist_diffusion.config.checks import check_nll
from dist_diffusion.config.load import load
from dist_diffusion.config.schema import NllRecipe
from dist_diffusion.distributed.environment import Topology


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Measures the model's bits per dimension of the shards' images."""
    recipe = ready(lambda: load(NllRecipe, config, overrides), check_nll, print_config, topology)
    if recipe is None:
        return
    from dist_diffusion.distributed import group as groups
    from dist_diffusion.evaluation.nll import run_nll
    from dist_diffusion.observe.console import Console

    groups.set_threads(recipe.threads, topology)
    group = groups.start(topology, PEER_TIMEOUT_S)
    run_nll(recipe, group, Console(None, topology.rank))
    groups.stop()
