"""Which part of the work is this process's, among the ranks of a launch and the tasks of a SLURM array."""

from collections.abc import Mapping
from dataclasses import dataclass

from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import LaunchError

_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT")
_STEP = "SLURM_ARRAY_TASK_STEP"


@dataclass(frozen=True)
class Share:
    """Every `count`-th shard, from number `index` on."""

    index: int = 0
    count: int = 1


WHOLE = Share()


def share_of(topology: Topology, environment: Mapping[str, str]) -> Share:
    """Array task by array task, in each rank by rank. LaunchError where the array's numbers are no regular range."""
    if not environment.get(_ARRAY[0]):
        return Share(topology.rank, topology.world_size)
    try:
        task, first, last, count = (int(environment[name]) for name in _ARRAY)
        step = int(environment.get(_STEP) or 1)
    except (KeyError, ValueError) as error:
        raise LaunchError(f"the variables {', '.join(_ARRAY)} are not all numbers: {error}") from error
    if first + (count - 1) * step != last:
        raise LaunchError(
            f"the array's {count} tasks from {first} to {last} are no regular range, so their shares are unknown: "
            f"submit a range such as --array=0-{count - 1}"
        )
    return Share((task - first) // step * topology.world_size + topology.rank, count * topology.world_size)
