"""Bytes of training state that a rank holds: counted in its memory, and by the formula."""

import gc
from dataclasses import dataclass, replace
from typing import Literal

import torch

from benchmarks.setting import BELOW_FULL_RESOLUTION, our_empty_network, pieces, recipe_of, task_batch
from dist_diffusion.config.schema import DiffusionRecipe, EmaOptions
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.ds_config import REDUCE_BUCKET
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.models.build import build
from dist_diffusion.tasks.build import build as build_task

MASTER_BYTES = 4
"""Masters, moments and averages are fp32 in every precision."""
WEIGHT_BYTES = {"fp32": 4, "bf16": 2}
NUM_AVERAGES = 2
PERSISTENT_BELOW = 100_000
"""DeepSpeed's default: stage 3 keeps smaller parameters whole on every rank."""


@dataclass(frozen=True)
class Layout:
    """How the state lies in the ranks."""

    stage: int
    precision: Literal["fp32", "bf16"]
    offload: bool = False

    @property
    def title(self) -> str:
        """What tells it from the others."""
        return f"stage {self.stage}, {self.precision}{', offload_optimizer' if self.offload else ''}"

    def recipe(self, world_size: int) -> DiffusionRecipe:
        """Of the measured network: two averages, a step of two micro-batches of one image."""
        recipe = recipe_of(BELOW_FULL_RESOLUTION, "fp32")
        engine = replace(recipe.engine, zero_stage=self.stage, precision=self.precision, offload_optimizer=self.offload)
        train = replace(recipe.train, micro_batch=1, global_batch=2 * world_size)
        return replace(recipe, engine=engine, ema=EmaOptions(decays=(0.9999,) * NUM_AVERAGES), train=train)


LAYOUTS = (
    *(Layout(stage, "fp32") for stage in range(4)),
    *(Layout(stage, "bf16") for stage in (1, 2, 3)),
    *(Layout(stage, "fp32", offload=True) for stage in (1, 3)),
)


@dataclass(frozen=True)
class Sizes:
    """Of a network, in elements."""

    all: int
    largest: int
    persistent: int
    """In parameters that stage 3 does not partition."""


def network_sizes() -> Sizes:
    """Of the measured network."""
    numels = [p.numel() for p in our_empty_network(BELOW_FULL_RESOLUTION).parameters()]
    return Sizes(sum(numels), max(numels), sum(numel for numel in numels if numel < PERSISTENT_BELOW))


def formula(layout: Layout, sizes: Sizes, world_size: int) -> dict[str, float]:
    """Bytes of a rank between steps, by what they are.

    Stage 0 shares out the averages alone; stages 1 and 2 add to the whole weights a share of everything else; stage 3
    has shares of all.
    """
    weight, stage = WEIGHT_BYTES[layout.precision], layout.stage
    share = sizes.all / world_size
    of_optimizer = share if stage else sizes.all
    held = {
        "weights": weight * (share if stage == 3 else sizes.all),
        "masters": MASTER_BYTES * share if stage else 0.0,
        "moments": 2 * MASTER_BYTES * of_optimizer,
        "averages": NUM_AVERAGES * MASTER_BYTES * share,
    }
    if stage == 3:
        held |= {"gradients": weight * share, "whole small parameters": float(weight * sizes.persistent)}
        held |= {"reduce bucket": reduce_bucket(layout, sizes)}
    if layout.offload:
        held["fp32 gradients"] = MASTER_BYTES * share
    if layout.offload and stage < 3:
        held |= {"buffer of new weights": weight * share, "buffers of a gradient": 2.0 * weight * sizes.largest}
    return held


def gradients(layout: Layout, sizes: Sizes, world_size: int) -> float:
    """Bytes that accumulation adds while it runs, at stage 1 with the bucket; stage 3 holds both all the time."""
    if layout.stage == 3:
        return 0.0
    bucket = reduce_bucket(layout, sizes) if layout.stage == 1 else 0.0
    return bucket + WEIGHT_BYTES[layout.precision] * sizes.all / (world_size if layout.stage == 2 else 1)


def reduce_bucket(layout: Layout, sizes: Sizes) -> float:
    """Bytes of what is reduced at once."""
    return float(WEIGHT_BYTES[layout.precision] * min(REDUCE_BUCKET, sizes.all))


def live_bytes() -> dict[int, int]:
    """Bytes of every tensor storage that this process can reach, by address."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if issubclass(type(held), torch.Tensor)]
    tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def measured(layout: Layout, group: Group) -> tuple[int, int]:
    """Bytes of state on this rank between two steps and between two micro-batches of a step."""
    micro_batches = pieces(task_batch(0), range(2), 1)
    recipe = layout.recipe(group.world_size)
    task, before = build_task(recipe, group.device), set(live_bytes())
    engine = TrainingEngine(build(recipe.model).train(), recipe, group)
    found: list[int] = []

    def at(stage: str) -> None:
        if stage == "forward":
            now = live_bytes()
            found.append(sum(now[address] for address in now.keys() - before))

    for step in range(2):
        engine.step(step, len(micro_batches), lambda i: task.loss(engine, micro_batches[i]).loss, at)
    _, _, between_steps, between_micro_batches = found
    return between_steps, between_micro_batches
