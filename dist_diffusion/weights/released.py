"""Checkpoints of guided-diffusion: theirs as exports of ours, and ours as state dicts that their code loads."""

import os
import shlex
from collections.abc import Callable, Iterable

import torch

from dist_diffusion.config.load import load_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, TrainRecipe
from dist_diffusion.errors import CheckpointError, ConfigError
from dist_diffusion.storage import files, publish
from dist_diffusion.weights import files as weight_files
from dist_diffusion.weights.flags import THEIR_CLASSES, flags, unsupported
from dist_diffusion.weights.foreign import read_state_dict
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.shapes import (
    Shapes,
    common_prefix,
    compare,
    nearest,
    network_shapes,
    num_known,
    printable,
    shapes_of,
)

RECIPE_SUFFIX = ".yaml"

Say = Callable[[str], None]


def import_checkpoint(source: str, preset: str, presets: str, out: str, say: Say) -> None:
    """Writes the state_dict `source` of a preset's network as an export. CheckpointError names every mismatch.

    `preset` is a name in the folder `presets`, or the path of a recipe.
    """
    recipe = recipe_of(preset, presets)
    needed = network_shapes(recipe.model)
    found = read_state_dict(source)
    if compare(needed, shapes_of(found)):
        raise CheckpointError(
            f"{source} is no checkpoint of {preset}; {_how_it_differs(source, shapes_of(found), preset, presets)}"
        )
    tensors = _converted(source, found, needed)
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
    say(f"its flags in guided-diffusion: {flags(loaded.recipe)}")
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


def _how_it_differs(source: str, found: Shapes, preset: str, presets: str) -> str:
    """The nearest preset, and every tensor in which the file differs from the given one."""
    names = dict.fromkeys([*preset_names(presets), preset])
    known = {name: network_shapes(recipe_of(name, presets).model) for name in names}
    advice, prefix = "", common_prefix(found)
    bare = {name.removeprefix(prefix): shape for name, shape in found.items()}
    if num_known(bare, known) > num_known(found, known):
        advice = (
            f"every name begins with {printable(prefix)}: strip it, then import that file\n"
            f"  {_strip_command(source, len(prefix))}\nwithout it, "
        )
        found = bare
    mismatch = compare(known[preset], found)
    return advice + nearest(found, known) + (f":\n{mismatch}" if mismatch else "")


def _strip_command(source: str, length: int) -> str:
    code = (
        "import sys, torch; from dist_diffusion.weights.foreign import read_state_dict as read; "
        f"torch.save({{name[{length}:]: tensor for name, tensor in read(sys.argv[1]).items()}}, sys.argv[2])"
    )
    return " ".join(map(shlex.quote, ("python", "-c", code, source, "state_dict.pt")))


def _converted(source: str, found: dict[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    """In fp32, each with memory of its own, as safetensors has it. CheckpointError names what is not finite there."""
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name in names:
        tensor = found[name].float().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"{source} has values that are not finite numbers in fp32, in {', '.join(wrong)}: its training "
            "diverged, or it is damaged; take an earlier checkpoint"
        )
    return tensors


def _count(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
