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


def our_network(options: UNetOptions, state: dict[str, torch.Tensor]) -> nn.Module:
    """The network with these weights."""
    network = build(recipe_of(options, "fp32").model)
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


@contextmanager
def one_process() -> Iterator[Group]:
    """A process group of this process alone."""
    group = groups.start(resolve_launch(os.environ), TIMEOUT_S)
    try:
        yield group
    finally:
        groups.stop()


def our_training_step(recipe: DiffusionRecipe, state: dict[str, torch.Tensor], group: Group) -> Callable[[], None]:
    """A step of our engine as the training loop makes it, draws included."""
    network = build(recipe.model, recipe.engine.recompute)
    network.load_state_dict(state)
    task = build_task(recipe, group.device)
    engine = TrainingEngine(network.train(), recipe, group)
    steps = iter(range(10**9))

    def step() -> None:
        number = next(steps)
        batch = task_batch(number)
        engine.step(number, 1, lambda i: task.loss(engine, batch).loss)

    return step


def check(what: str, ours: torch.Tensor, peer: torch.Tensor, tolerance: float) -> None:
    """Says how far the two are apart; InternalError where that is too far for a comparison to mean anything."""
    error = (ours - peer).abs().max().item()
    print(f"{what}: largest difference {error:.2e}, tolerance {tolerance:.2e}", flush=True)
    if not error <= tolerance:
        raise InternalError(f"{what}: ours differs from the peer by {error:.2e}, more than {tolerance:.2e}")
