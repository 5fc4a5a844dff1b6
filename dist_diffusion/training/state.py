"""What a run is made of."""

from dataclasses import dataclass
from typing import Any

from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.data.loader import Loader
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.signals import StopFlag
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.observe.console import Console
from dist_diffusion.runs.lease import Lease
from dist_diffusion.storage.mirror import Mirror
from dist_diffusion.tasks.task import Task
from dist_diffusion.training.observer import Observer
from dist_diffusion.training.validation import Validation


@dataclass
class Run:
    """Everything a run is made of, once it is assembled."""

    recipe: TrainRecipe
    group: Group
    task: Task
    engine: TrainingEngine
    loader: Loader
    checkpointer: Checkpointer
    observer: Observer
    validation: Validation | None
    console: Console
    stop: StopFlag
    lease: Lease | None
    """Held by rank 0."""
    mirror: Mirror | None
    """Of rank 0, where the recipe has one."""
    where: Whereabouts
    """What this rank is at."""
    epoch_images: int
    data: dict[str, Any]
    """What each commit says of the data."""
    step: int
    """Completed steps."""
    saved_step: int
    """Of the newest commit; -1 before the first."""
    commits: int
    nonfinite_in_a_row: int = 0
    stopping: bool = False
    """The ranks have agreed to stop: what is left of their time is for the commit."""
