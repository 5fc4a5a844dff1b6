"""What the commands that read a recipe begin with, alike in every rank."""

from collections.abc import Callable
from typing import TypeVar

from dist_diffusion.config.load import to_yaml
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import LaunchError, alike

Recipe = TypeVar("Recipe")
PEER_TIMEOUT_S = 6 * 3600.0
"""Of commands whose ranks work apart: one that is done waits this long for the others' last piece."""


def ready(
    load: Callable[[], Recipe], check: Callable[[Recipe], None], print_config: bool, topology: Topology
) -> Recipe | None:
    """The recipe, loaded and checked; None where it was only to be printed."""
    with alike():
        recipe = load()
        if print_config:
            print(to_yaml(recipe) if topology.rank == 0 else "", end="")
            return None
        check(recipe)
        return recipe


def check_alone(command: str, topology: Topology) -> None:
    """LaunchError where a command of one process was started in several."""
    if topology.world_size > 1:
        raise LaunchError(f"{command} runs in one process, this launch has {topology.world_size}: start it alone")
