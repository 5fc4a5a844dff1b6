"""`dist-diffusion sample`."""

from collections.abc import Sequence

from dist_diffusion.cli.recipe import PEER_TIMEOUT_S, ready
from dist_diffusion.config.load import load
from dist_diffusion.config.sampling_checks import check_sample
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.distributed.environment import Topology


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Starts or goes on with the job of out."""
    recipe = ready(lambda: load(SampleRecipe, config, overrides), check_sample, print_config, topology)
    if recipe is None:
        return
    from dist_diffusion.distributed import group as groups
    from dist_diffusion.observe.console import Console
    from dist_diffusion.sampling.run import run_job

    threads = groups.set_threads(recipe.threads, topology)
    group = groups.start(topology, PEER_TIMEOUT_S)
    run_job(recipe, group, threads, Console(None, topology.rank))
    groups.stop()
