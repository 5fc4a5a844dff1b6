"""From a recipe and a shard folder to the resolved recipe, the data order and this rank's loader."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe, TrainRecipe
from dist_diffusion.data import manifest as manifests
from dist_diffusion.data.latents import latent_format
from dist_diffusion.data.loader import Loader
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.data.order import Order, default_streams, rank_slots
from dist_diffusion.diffusion.spacing import sampler_levels
from dist_diffusion.distributed.agreement import on_rank_zero, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.draws import Draw
from dist_diffusion.errors import ConfigError, alike
from dist_diffusion.models.build import build
from dist_diffusion.training.place import Place

MAX_DEFAULT_WORKERS = 8


@dataclass(frozen=True)
class Prepared:
    """A recipe with nothing left open, and the data that it is about."""

    recipe: TrainRecipe
    manifest: Manifest
    index: np.ndarray
    order: Order


def prepare(recipe: TrainRecipe, group: Group) -> Prepared:
    """Reads the data's tables (rank 0 looks at every shard, for all) and resolves the recipe."""
    assert recipe.data.shards is not None
    shards = recipe.data.shards
    manifest = on_rank_zero(group, lambda: manifests.load(shards))
    index = together(group, lambda: manifests.index(manifest))
    with alike():
        check_kind(recipe, manifest)
        recipe = resolve(recipe, len(manifest.classes))
        check_buildable(recipe)
        streams = recipe.data.canonical_streams or default_streams(recipe.train.global_batch)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, canonical_streams=streams))
        order = Order(manifest.identities, recipe.seed, streams, recipe.train.global_batch, recipe.data.shuffle_block)
    return Prepared(recipe, manifest, index, order)


def check_kind(recipe: TrainRecipe, manifest: Manifest) -> None:
    """ConfigError where the recipe asks for images and the shards hold latents, or the other way round."""
    if not recipe.data.latents:
        if manifest.kind == "latents":
            raise ConfigError(f"data.shards={recipe.data.shards} holds latents: set data.latents=true")
        return
    shape = latent_format(manifest).shape
    wanted = (recipe.model.in_channels, recipe.data.image_size, recipe.data.image_size)
    if shape != wanted:
        raise ConfigError(
            f"data.shards={recipe.data.shards} holds latents of {shape}, but model.in_channels and data.image_size say "
            f"{wanted}"
        )


def check_buildable(recipe: TrainRecipe) -> None:
    """ConfigError for sizes that do not fit together, before anything is started: a network without memory."""
    with torch.device("meta"):
        build(recipe.model)
    if isinstance(recipe, DiffusionRecipe) and recipe.preview.num_images:
        sampler_levels(recipe.diffusion, recipe.preview.sampler)


def make_loader(prepared: Prepared, draws: tuple[Draw, ...], place: Place, start_step: int) -> Loader:
    """This rank's batches from `start_step` on."""
    recipe, group = prepared.recipe, place.group
    slots = rank_slots(recipe.train.global_batch, group.world_size, group.rank)
    options = dataclasses.replace(recipe.data, workers=decode_workers(recipe.data, place))
    return Loader(prepared.manifest, prepared.index, prepared.order, options, draws, recipe.seed, slots, start_step)


def decode_workers(options: DataOptions, place: Place) -> int:
    """Decode processes of a rank: as asked for, else one a core beside a GPU, up to 8; beside a CPU's training none."""
    if options.latents:
        return 0
    if options.workers is not None:
        return options.workers
    return min(place.cores, MAX_DEFAULT_WORKERS) if place.group.device.type == "cuda" else 0
