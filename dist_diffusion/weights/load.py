"""Plain frozen modules from exports: what sampling, guidance and judging use. Never through an engine."""

from dataclasses import dataclass

import torch
from torch import nn

from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.errors import CheckpointError
from dist_diffusion.models.build import build
from dist_diffusion.weights import files as weight_files
from dist_diffusion.weights.resolve import find
from dist_diffusion.weights.shapes import compare, shapes_of


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode whose parameters need no gradients, its recipe, and the file it came from."""

    module: nn.Module
    recipe: TrainRecipe
    path: str
    info: dict[str, object]


def load_model(path: str, ema: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The network of RUN, RUN@STEP or an export."""
    file = find(path, ema)
    export = weight_files.load(file)
    with torch.device("meta"):
        module = build(export.recipe.model)
    mismatch = compare(shapes_of(module.state_dict()), shapes_of(export.tensors))
    if mismatch:
        raise CheckpointError(f"{file}: its tensors are not those of its own recipe: {mismatch}")
    module.load_state_dict(export.tensors, assign=True)
    module.to(device).eval().requires_grad_(False)
    return LoadedModel(module, export.recipe, file, export.info)
