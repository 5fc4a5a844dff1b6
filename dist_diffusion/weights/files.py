"""Weights as safetensors with the whole resolved recipe inside. Nothing here can run code of the file's."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dist_diffusion.config import load as config_load
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, StorageError
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.foreign import PICKLE, ZIP

FORMAT = 1


@dataclass(frozen=True)
class Export:
    """One set of weights and the recipe that they were trained with."""

    tensors: dict[str, torch.Tensor]
    recipe: TrainRecipe
    info: dict[str, Any]
    """step, images, the average's name, classes."""


def save(path: str, tensors: dict[str, torch.Tensor], recipe: TrainRecipe, info: dict[str, Any]) -> None:
    """Publishes an export atomically."""
    with publish.atomic_file(path) as temporary:
        write(temporary, tensors, recipe, info)


def write(path: str, tensors: dict[str, torch.Tensor], recipe: TrainRecipe, info: dict[str, Any]) -> None:
    """Writes an export to a local path; not synced."""
    header = {"format": str(FORMAT), "recipe": json.dumps(config_load.to_dict(recipe)), "info": json.dumps(info)}
    with files.failures("write", path):
        save_file(tensors, path, metadata=header)


def load(path: str) -> Export:
    """Reads an export; CheckpointError names the file where it is none of ours."""
    with opened(path) as stream:
        recipe, info = _parsed(stream, path)
        return Export({name: stream.get_tensor(name) for name in stream.keys()}, recipe, info)  # noqa: SIM118


def header(path: str) -> tuple[TrainRecipe, dict[str, Any]]:
    """Recipe and info of an export, without its tensors."""
    with opened(path) as stream:
        return _parsed(stream, path)


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Its tensors one by one, memory-mapped: what safetensors' safe_open gives."""
    if not files.exists(path):
        raise StorageError(f"{path}: no such export")
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except SafetensorError as error:
        with files.open_read(path) as opened:
            of_torch = opened.read(len(ZIP)).startswith((ZIP, PICKLE))
        if of_torch:
            raise CheckpointError(f"{path} is a file of torch.save, not an export: {_import_it(path)}") from error
        raise CheckpointError(f"{path} is not a safetensors file ({error}): restore it or export it again") from error


def _import_it(path: str) -> str:
    tool = "python tools/import_guided_diffusion.py"
    return f"import it first: {tool} {shlex.quote(path)} --preset NAME OUT.safetensors"


def _parsed(stream: Any, path: str) -> tuple[TrainRecipe, dict[str, Any]]:
    header = stream.metadata() or {}
    if "recipe" not in header:
        raise CheckpointError(f"{path} holds tensors without the recipe of an export: {_import_it(path)}")
    if header.get("format") != str(FORMAT):
        raise CheckpointError(
            f"{path} is no export of this version (format {header.get('format')}, expected {FORMAT}): export it again"
        )
    try:
        recipe = config_load.from_dict(json.loads(header["recipe"]), path)
    except ConfigError as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error
    return recipe, json.loads(header["info"])
