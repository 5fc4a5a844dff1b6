"""`dist-diffusion evaluate CONFIG samples=A reference=B out=DIR`."""

from collections.abc import Callable

from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.errors import DONE
from dist_diffusion.evaluation.report import evaluate


def run(recipe: EvaluateRecipe, say: Callable[[str], None]) -> int:
    """Evaluate, print the table, return the exit code."""
    evaluate(recipe, say)
    return DONE
