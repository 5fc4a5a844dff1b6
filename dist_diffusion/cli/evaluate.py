"""`dist-diffusion evaluate`."""

from collections.abc import Sequence

from dist_diffusion.cli.recipe import check_alone, ready
from dist_diffusion.config.checks import check_evaluate
from dist_diffusion.config.load import load
from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.distributed.environment import Topology


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Compares samples with a reference, in one process."""

    def check(recipe: EvaluateRecipe) -> None:
        check_evaluate(recipe)
        check_alone("evaluate", topology)

    recipe = ready(lambda: load(EvaluateRecipe, config, overrides), check, print_config, topology)
    if recipe is None:
        return
    from dist_diffusion.evaluation.report import evaluate

    evaluate(recipe, print)
