"""`dist-diffusion evaluate`."""

from collections.abc import Sequence

from dist_diffusion.config.checks import check_evaluate
from dist_diffusion.config.load import load, to_yaml
from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import LaunchError, alike


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Compares samples with a reference, in one process."""
    with alike():
        recipe = load(EvaluateRecipe, config, overrides)
        if print_config:
            print(to_yaml(recipe) if topology.rank == 0 else "", end="")
            return
        check_evaluate(recipe)
        if topology.world_size > 1:
            raise LaunchError(f"evaluate runs in one process, this launch has {topology.world_size}: start it alone")
    from dist_diffusion.evaluation.report import evaluate

    evaluate(recipe, print)
