"""The loss on held-out samples, from a commit's export: each sample has one noise level and one noise, always."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import torch

from dist_diffusion import draws
from dist_diffusion.config.schema import DiffusionRecipe, TrainRecipe
from dist_diffusion.data import manifest as manifests
from dist_diffusion.distributed.agreement import broadcast, on_rank_zero, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation.images import ShardImages
from dist_diffusion.tasks.build import build
from dist_diffusion.tasks.task import Forward, Log, Mean, Task, TaskBatch, added
from dist_diffusion.training.observer import over_ranks
from dist_diffusion.weights.load import load_model

SEED = draws.key(0, "validation", 0)
"""Of the draws, which are keyed by row: all runs' commits meet the same, and none that a training of any seed met."""


@dataclass(frozen=True)
class Validation:
    """What every commit is measured by."""

    task: Task
    images: ShardImages
    batch_size: int
    device: torch.device


def make_validation(recipe: TrainRecipe, classes: Sequence[str], group: Group) -> Validation | None:
    """The validation that a resolved recipe asks for, of a run on data of these classes; None where it asks for none.

    ConfigError where its shards are of other classes, DataError where they cannot be used, in every rank alike.
    """
    options = recipe.validation
    shards = options.shards
    if shards is None:
        return None
    if recipe.model.num_classes:
        on_rank_zero(group, lambda: check_classes(shards, manifests.load(shards).classes, classes))
    images = together(group, lambda: ShardImages(shards, recipe.data.image_size, options.num_samples))
    return Validation(validation_task(recipe, group.device), images, options.batch_size, group.device)


def check_classes(shards: str, classes: Sequence[str], trained: Sequence[str]) -> None:
    """ConfigError names the first label that stands for another class than in training."""
    for label, (own, other) in enumerate(zip_longest(classes, trained, fillvalue="(none)")):
        if own != other:
            raise ConfigError(
                f"validation.shards={shards}: label {label} is the class {own}, in data.shards the class {other}: give "
                "shards that were made of a source with the same classes"
            )


def validation_task(recipe: TrainRecipe, device: torch.device) -> Task:
    """The recipe's task without what only helps training: dropped labels, and timesteps that are not independent."""
    if isinstance(recipe, DiffusionRecipe):
        timesteps = recipe.objective.timesteps
        objective = dataclasses.replace(
            recipe.objective, p_uncond=0.0, timesteps=timesteps if timesteps == "log_normal" else "uniform"
        )
        recipe = dataclasses.replace(recipe, objective=objective)
    return build(recipe, device)


def validate(validation: Validation, export: str, group: Group) -> dict[str, float | None]:
    """The export's loss over all samples and what else the task logs, the same in every rank and for any number."""

    def own_share() -> Log:
        module = load_model(export, device=group.device).module
        return measure(validation, module, group.rank, group.world_size)

    log = together(group, own_share)
    # With fewer batches than ranks, some have nothing to name; rank 0 always has the first batch.
    names = broadcast(group, list(log))
    return over_ranks(group, {name: log.get(name, Mean.of(torch.empty(0))) for name in names})


@torch.inference_mode()
def measure(validation: Validation, network: Forward, rank: int, world_size: int) -> Log:
    """Of every world_size-th batch from number `rank` on."""
    images, size = validation.images, validation.batch_size
    starts = range(rank * size, images.num_images, world_size * size)
    logs = []
    for start, pixels in zip(starts, images.batches(size, first=rank, stride=world_size), strict=True):
        made = validation.task.loss(network, batch_of(validation, pixels, range(start, start + len(pixels))))
        logs.append({"loss": Mean.of(made.loss.expand(len(pixels))), **made.log})
    return added(logs)


def batch_of(validation: Validation, pixels: np.ndarray, rows: range) -> TaskBatch:
    """Uint8 NHWC images of these rows with their labels, and their own draws."""
    labels, device = validation.images.labels, validation.device
    assert labels is not None
    drawn = {draw.name: torch.stack([draw.at(SEED, row) for row in rows]) for draw in validation.task.draws}
    return TaskBatch(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device),
        labels=torch.from_numpy(labels[rows]).to(device),
        draws={name: values.to(device) for name, values in drawn.items()},
    )
