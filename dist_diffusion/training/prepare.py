"""From a recipe and a shard folder to the resolved recipe, the data order and this rank's loader."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.data import manifest as manifests
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, default_streams, rank_slots
from dist_diffusion.distributed.agreement import on_rank_zero, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.draws import Draw


@dataclass(frozen=True)
class Prepared:
    """A recipe with nothing left open, and the data that it is about."""

    recipe: TrainRecipe
    manifest: Manifest
    index: np.ndarray
    order: Order


def prepare(recipe: TrainRecipe, group: Group) -> Prepared:
    """Reads the manifest (rank 0 first: what it finds wrong is told once) and resolves the recipe."""
    assert recipe.data.shards is not None
    shards = recipe.data.shards
    on_rank_zero(group, lambda: manifests.index(manifests.load(shards)) is not None)
    manifest, index = together(group, lambda: _read(shards))
    recipe = resolve(recipe, len(manifest.classes))
    streams = recipe.data.canonical_streams or default_streams(recipe.train.global_batch)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, canonical_streams=streams))
    order = Order(manifest.identities, recipe.seed, streams, recipe.train.global_batch, recipe.data.shuffle_block)
    return Prepared(recipe, manifest, index, order)


def _read(shards: str) -> tuple[Manifest, np.ndarray]:
    manifest = manifests.load(shards)
    return manifest, manifests.index(manifest)


def make_loader(prepared: Prepared, draws: tuple[Draw, ...], group: Group, start_step: int) -> Loader:
    """This rank's batches from `start_step` on."""
    recipe = prepared.recipe
    slots = rank_slots(recipe.train.global_batch, group.world_size, group.rank)
    return Loader(prepared.manifest, prepared.index, prepared.order, recipe.data, draws, recipe.seed, slots, start_step)
