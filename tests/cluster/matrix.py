"""Run by mpirun: trains one recipe at every ZeRO stage and accumulation on this world size, each cell a run of its own.

matrix.py FOLDER CONFIG [dotted.key=value ...]
"""

import os
import sys
from dataclasses import dataclass

from dist_diffusion.config.load import load_train
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.environment import resolve
from dist_diffusion.training.run import train

GLOBAL_BATCH = 24
STAGES = (0, 1, 2, 3)
ACCUMULATIONS = {1: (1, 6), 2: (1, 4), 3: (1, 2), 4: (1, 3)}
"""By world size: the whole share in one micro-batch, and as many as do not take too long."""


@dataclass(frozen=True)
class Cell:
    """One layout."""

    world_size: int
    stage: int
    accumulation: int

    @property
    def name(self) -> str:
        return f"{self.world_size}-{self.stage}-{self.accumulation}"

    @property
    def overrides(self) -> list[str]:
        micro_batch = GLOBAL_BATCH // self.world_size // self.accumulation
        return [f"engine.zero_stage={self.stage}", f"train.micro_batch={micro_batch}"]


def cells(world_size: int) -> list[Cell]:
    return [Cell(world_size, stage, count) for stage in STAGES for count in ACCUMULATIONS[world_size]]


def main(folder: str, config: str, *overrides: str) -> None:
    topology = resolve(os.environ)
    group = groups.start(topology, timeout_s=60)
    stop = groups.stop
    # MPI starts once in a process, and so can its agreement on the rendezvous: all cells are of this one group.
    groups.start = lambda topology, timeout_s: group
    groups.stop = lambda: None
    for cell in cells(group.world_size):
        own = [*cell.overrides, f"train.global_batch={GLOBAL_BATCH}", f"run_dir={folder}/{cell.name}"]
        train(load_train(config, [*overrides, *own]), topology, os.environ)
    stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
