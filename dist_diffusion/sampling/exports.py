"""The exports that a folder of samples was made with: copied into it, and pinned by their content."""

import os
from typing import Any

from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, StorageError
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find

Wanted = dict[str, str]
"""By role (model, classifier, uncond_model, auto_model): the path that is given."""
Sources = dict[str, tuple[str, str]]
"""By role: the path that was given, and the export that it names."""
Pinned = dict[str, dict[str, Any]]
"""By role: the path that was `given`, the `source` that it named, the copy's `file` name and its `sha256`."""


def wanted_models(recipe: SampleRecipe) -> Wanted:
    """The path that the recipe gives for each role that its guidance uses."""
    mode, guidance = recipe.guidance.mode, recipe.guidance
    assert recipe.model is not None
    roles = {"model": recipe.model}
    if mode in ("classifier", "both"):
        assert guidance.classifier is not None
        roles["classifier"] = guidance.classifier
    if mode in ("cfg", "both") and guidance.uncond_model is not None:
        roles["uncond_model"] = guidance.uncond_model
    if guidance.auto_scale != 1:
        assert guidance.auto_model is not None
        roles["auto_model"] = guidance.auto_model
    return roles


def find_sources(wanted: Wanted, ema: str | None) -> Sources:
    """The exports that the paths name; `ema` is which of the model's."""
    return {role: (given, find(given, _average(role, ema))) for role, given in wanted.items()}


def copy_name(role: str) -> str:
    """The file that a role's export is copied to."""
    return f"{role}.safetensors"


def pin(folder: str, sources: Sources) -> Pinned:
    """Copies exports into a folder."""
    pinned = {}
    for role, (given, source) in sources.items():
        digest = publish.copy(source, files.join(folder, copy_name(role)))
        pinned[role] = {"given": given, "source": source, "file": copy_name(role), "sha256": digest}
    return pinned


def check_copies(folder: str, pinned: Pinned) -> None:
    """StorageError where a copy is not what was pinned."""
    for role, model in pinned.items():
        copy = files.join(folder, model["file"])
        if not files.exists(copy) or files.sha256(copy) != model["sha256"]:
            raise StorageError(f"{copy} is missing or damaged: restore it, or sample into another folder ({role})")


def notes(folder: str, pinned: Pinned, wanted: Wanted, ema: str | None) -> list[str]:
    """What to say where a given model is not the pinned one any more. ConfigError where it is another run's."""
    said = []
    for role, given in wanted.items():
        before = pinned[role]
        try:
            source = find(given, _average(role, ema))
        except (CheckpointError, StorageError):
            said.append(f"{role} {given} cannot be read any more; the job's own copy is used")
            continue
        if source == before["source"] or files.sha256(source) == before["sha256"]:
            continue
        if os.path.abspath(given) != os.path.abspath(before["given"]):
            raise ConfigError(
                f"out={folder} holds a job of {role} {before['given']}, not {given}: give that, or another out"
            )
        said.append(f"{role} {given} has a newer commit; this job stays with {before['source']}")
    return said


def _average(role: str, ema: str | None) -> str | None:
    return ema if role == "model" else None
