"""What is measured: two networks, their weights and data, and our training step on them."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe, EmaOptions, EngineOptions, TrainOptions
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.environment import resolve as resolve_launch
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.ds_config import micro_batch
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import InternalError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.tasks.build import build as build_task
from dist_diffusion.tasks.task import TaskBatch

IMAGE_SIZE, BATCH, NUM_CLASSES = 32, 16, 1000
WITH_FULL_RESOLUTION = UNetOptions(channels=96, channel_mult=(1, 2, 2), attention_resolutions=(32, 16, 8))
"""18 M parameters; attention_resolutions as in the released flags, which at 32 pixels includes full resolution."""
BELOW_FULL_RESOLUTION = UNetOptions(
    channels=64, channel_mult=(1, 2, 4), attention_resolutions=(16, 8), num_head_channels=32
)
"""18 M parameters too; no attention at full resolution, as in the paper's models: most of the work is convolutions."""
NETWORKS = (WITH_FULL_RESOLUTION, BELOW_FULL_RESOLUTION)
TIMEOUT_S = 600.0


def title(options: UNetOptions) -> str:
    """What tells a network from the other."""
    return f"attention at {', '.join(map(str, options.attention_resolutions))} px"


def recipe_of(options: UNetOptions, precision: Literal["fp32", "autocast"], recompute: bool = False) -> DiffusionRecipe:
    """The recipe of the measured training step, without dropout."""
    recipe = DiffusionRecipe(
        data=DataOptions(image_size=IMAGE_SIZE),
        model=options,
        train=TrainOptions(global_batch=BATCH),
        ema=EmaOptions(decays=(0.9999,)),
        engine=EngineOptions(precision=precision, recompute=recompute),
    )
    resolved = resolve(recipe, NUM_CLASSES)
    assert isinstance(resolved, DiffusionRecipe)
    return resolved


def our_empty_network(options: UNetOptions) -> nn.Module:
    """The network without memory: names and shapes."""
    with torch.device("meta"):
        return build(recipe_of(options, "fp32").model)


def random_weights(options: UNetOptions) -> dict[str, torch.Tensor]:
    """Weights of a sensible scale, the same in all of a network's copies: as networks are made, they put out zeros."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in our_empty_network(options).state_dict().items()}
    return {
        name: torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
        for name, shape in shapes.items()
    }


def our_network(options: UNetOptions, state: dict[str, torch.Tensor], recompute: bool = False) -> nn.Module:
    """The network with these weights."""
    network = build(recipe_of(options, "fp32").model, recompute)
    network.load_state_dict(state)
    return network


def task_batch(seed: int) -> TaskBatch:
    """Images, labels and draws, as the loader hands them over."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    draws = {
        "timestep": torch.rand(BATCH, dtype=torch.float64, generator=generator),
        "noise": torch.randn(shape, generator=generator),
        "dropped_label": torch.zeros(BATCH, dtype=torch.bool),
    }
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return TaskBatch(images, torch.randint(NUM_CLASSES, (BATCH,), generator=generator), draws)


def pieces(batch: TaskBatch, rows: range, size: int) -> list[TaskBatch]:
    """Rows of a batch, in micro-batches."""
    return [
        TaskBatch(
            batch.images[i : i + size], batch.labels[i : i + size], {k: v[i : i + size] for k, v in batch.draws.items()}
        )
        for i in range(rows.start, rows.stop, size)
    ]


@contextmanager
def process_group() -> Iterator[Group]:
    """Of the ranks that were launched, else of this process alone."""
    group = groups.start(resolve_launch(os.environ), TIMEOUT_S)
    try:
        yield group
    finally:
        groups.stop()


def our_training_step(recipe: DiffusionRecipe, state: dict[str, torch.Tensor], group: Group) -> Callable[[], None]:
    """A step of our engine as the training loop makes it, draws included."""
    return step_of(our_engine(recipe, state, group))


def our_engine(recipe: DiffusionRecipe, state: dict[str, torch.Tensor], group: Group) -> TrainingEngine:
    """With these weights."""
    assert isinstance(recipe.model, UNetOptions)
    return TrainingEngine(our_network(recipe.model, state, recipe.engine.recompute).train(), recipe, group)


def step_of(engine: TrainingEngine) -> Callable[[], None]:
    """A step over this rank's rows of a batch, a new one each time."""
    group, steps = engine.group, iter(range(10**9))
    task, size = build_task(engine.recipe, group.device), micro_batch(engine.recipe, group.world_size)
    share = BATCH // group.world_size
    rows = range(group.rank * share, (group.rank + 1) * share)

    def step() -> None:
        number = next(steps)
        micro_batches = pieces(task_batch(number), rows, size)
        engine.step(number, len(micro_batches), lambda i: task.loss(engine, micro_batches[i]).loss)

    return step


def check(what: str, ours: torch.Tensor, peer: torch.Tensor, tolerance: float) -> None:
    """Says how far the two are apart; InternalError where that is too far for a comparison to mean anything."""
    error = (ours - peer).abs().max().item()
    print(f"{what}: largest difference {error:.2e}, tolerance {tolerance:.2e}", flush=True)
    if not error <= tolerance:
        raise InternalError(f"{what}: ours differs from the peer by {error:.2e}, more than {tolerance:.2e}")
