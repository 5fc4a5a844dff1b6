"""`dist-diffusion train`."""

import os
from collections.abc import Sequence

from dist_diffusion.cli.recipe import ready
from dist_diffusion.config.checks import check_train
from dist_diffusion.config.load import load_train
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.engine.ds_config import checked_extra


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Starts or resumes the run of run_dir."""

    def check(recipe: TrainRecipe) -> None:
        check_train(recipe, topology.world_size)
        checked_extra(recipe.deepspeed.extra)

    recipe = ready(lambda: load_train(config, overrides), check, print_config, topology)
    if recipe is None:
        return
    from dist_diffusion.training.run import train

    train(recipe, topology, os.environ)
