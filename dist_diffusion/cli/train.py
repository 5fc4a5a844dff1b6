"""`dist-diffusion train`."""

import os
from collections.abc import Sequence

from dist_diffusion.config.checks import check_train
from dist_diffusion.config.load import load_train, to_yaml
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.engine.ds_config import checked_extra
from dist_diffusion.errors import alike


def run(config: str, overrides: Sequence[str], print_config: bool, topology: Topology) -> None:
    """Starts or resumes the run of run_dir."""
    with alike():
        recipe = load_train(config, overrides)
        if print_config:
            print(to_yaml(recipe) if topology.rank == 0 else "", end="")
            return
        check_train(recipe, topology.world_size)
        checked_extra(recipe.deepspeed.extra)
    from dist_diffusion.training.run import train

    train(recipe, topology, os.environ)
