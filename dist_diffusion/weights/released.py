"""Checkpoints of guided-diffusion: theirs as exports of ours, and ours as state dicts that their code loads."""

import os
from collections.abc import Callable

import torch

from dist_diffusion.config.checks import get
from dist_diffusion.config.load import load_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, SuperResolutionRecipe, TrainRecipe
from dist_diffusion.errors import CheckpointError, ConfigError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.storage import files, publish
from dist_diffusion.weights import files as weight_files
from dist_diffusion.weights.foreign import read_state_dict
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.shapes import Shapes, compare, network_shapes, shapes_of

RECIPE_SUFFIX = ".yaml"
THEIR_CLASSES = 1000
"""Written into guided-diffusion's script_util.py."""
THEIR_CHANNEL_MULT: dict[int | None, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
}
"""What guided-diffusion takes for an image size where its --channel_mult, which knows integers alone, is not given."""
THEIR_UPSAMPLER_MULT: dict[int | None, tuple[float, ...]] = {
    512: (1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    64: (1, 2, 3, 4),
}
THEIR_HEAD_CHANNELS = 64
"""Of a classifier."""

Say = Callable[[str], None]


def import_checkpoint(source: str, preset: str, presets: str, out: str, say: Say) -> None:
    """Writes the state_dict `source` of a preset's network as an export. CheckpointError names every mismatch.

    `preset` is a name in the folder `presets`, or the path of a recipe.
    """
    recipe = recipe_of(preset, presets)
    needed = network_shapes(recipe.model)
    found = read_state_dict(source)
    mismatch = compare(needed, shapes_of(found))
    if mismatch:
        raise CheckpointError(
            f"{source} is no checkpoint of {preset}; {nearest(shapes_of(found), presets)}: {mismatch}"
        )
    tensors = {name: found[name].float().contiguous() for name in needed}
    digest = files.sha256(source)
    info = {"source": os.path.basename(source), "sha256": digest, "preset": preset}
    weight_files.save(out, tensors, recipe, info)
    converted = sorted({str(tensor.dtype) for tensor in found.values()} - {str(torch.float32)})
    say(
        f"{out}: {recipe.task} model {preset}, {len(tensors)} tensors, {_count(tensors):,} parameters in fp32"
        f"{', converted from ' + ', '.join(converted) if converted else ''}; from {source} (sha256 {digest})"
    )


def export_checkpoint(source: str, average: str | None, out: str, say: Say) -> None:
    """Writes a run's or an export's weights as a state_dict that guided-diffusion loads with strict=True.

    ConfigError names what guided-diffusion has no flag for.
    """
    loaded = load_model(source, average)
    wrong = unsupported(loaded.recipe)
    if wrong:
        raise ConfigError(f"{loaded.path}: guided-diffusion cannot run this model: {'; '.join(wrong)}")
    tensors = dict(loaded.module.state_dict())
    with publish.atomic_file(out) as temporary, files.failures("write", out), open(temporary, "wb") as stream:
        torch.save(tensors, stream)
    say(f"{out}: a state_dict of {len(tensors)} tensors, {_count(tensors):,} parameters in fp32; from {loaded.path}")
    classes = loaded.recipe.model.num_classes
    if classes not in (0, THEIR_CLASSES):
        say(f"guided-diffusion builds {THEIR_CLASSES} classes, this model has {classes}: change its script_util.py")


def recipe_of(preset: str, presets: str) -> TrainRecipe:
    """The resolved recipe of a preset, or of a recipe's path. ConfigError lists the presets."""
    path = preset
    if not preset.endswith(RECIPE_SUFFIX):
        names = preset_names(presets)
        if preset not in names:
            raise ConfigError(f"no preset {preset}: give the path of a recipe (.yaml), or one of {', '.join(names)}")
        path = files.join(presets, preset + RECIPE_SUFFIX)
    recipe = load_train(path, [])
    classes = recipe.model.num_classes
    if classes is None or (classes == 0 and isinstance(recipe, ClassifierRecipe)):
        raise ConfigError(f"{path}: model.num_classes={classes}: give the number of classes (0: not conditional)")
    return resolve(recipe, classes)


def preset_names(presets: str) -> list[str]:
    """The recipes of a folder by name."""
    names = files.list_names(presets)
    return [name.removesuffix(RECIPE_SUFFIX) for name in names if name.endswith(RECIPE_SUFFIX)]


def nearest(found: Shapes, presets: str) -> str:
    """What to say of the presets that differ least from a file's tensors."""
    counts = {
        name: len(compare(network_shapes(recipe_of(name, presets).model), found)) for name in preset_names(presets)
    }
    fewest = min(counts.values())
    names = " or ".join(name for name, count in counts.items() if count == fewest)
    return f"it fits {names}" if fewest == 0 else f"the nearest preset is {names} ({fewest} mismatches)"


def unsupported(recipe: TrainRecipe) -> list[str]:
    """What of a model guided-diffusion's scripts cannot be told, as key=value."""
    model, process = recipe.model, recipe.diffusion
    runs = {"diffusion.schedule": process.schedule != "log_snr", "model.channel_mult": _has_their_mult(recipe)}
    if isinstance(model, UNetOptions):
        runs["diffusion.prediction"] = process.prediction in ("eps", "x0")
        runs["diffusion.variance"] = process.variance in ("learned_range", "fixed_large")
        runs["model.null_label"] = not model.null_label
    else:
        runs["model.num_head_channels"] = model.num_head_channels == THEIR_HEAD_CHANNELS
    if isinstance(recipe, ClassifierRecipe | SuperResolutionRecipe):
        runs["model.new_attention_order"] = not model.new_attention_order
    return [f"{key}={get(recipe, key)}" for key, can in runs.items() if not can]


def _has_their_mult(recipe: TrainRecipe) -> bool:
    size, mult = recipe.model.image_size, tuple(recipe.model.channel_mult)
    if isinstance(recipe, SuperResolutionRecipe):
        return THEIR_UPSAMPLER_MULT.get(size) == mult
    if isinstance(recipe, ClassifierRecipe):
        return THEIR_CHANNEL_MULT.get(size) == mult
    return THEIR_CHANNEL_MULT.get(size) == mult or all(float(m).is_integer() for m in mult)


def _count(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
