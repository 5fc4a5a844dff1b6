"""Recipes from YAML files with a `base:` chain and dotted overrides; the only user of OmegaConf."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dist_diffusion.config.schema import ClassifierRecipe, DiffusionRecipe, SuperResolutionRecipe, TrainRecipe
from dist_diffusion.errors import ConfigError

Recipe = TypeVar("Recipe")
TASKS: dict[str, type] = {
    "diffusion": DiffusionRecipe,
    "classifier": ClassifierRecipe,
    "super_resolution": SuperResolutionRecipe,
}
MAX_BASES = 16
RENAMED: tuple[tuple[str, str, Callable[[Any], dict[str, Any]]], ...] = (
    ("objective", "sigma_data", lambda value: {"diffusion": {"sigma_data": value}}),
    ("optim", "anneal", lambda value: {"optim": {"decay": "linear" if value else "none"}}),
)
"""Sections and keys of earlier versions, and what they are today."""


def load(schema: type[Recipe], path: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of `path`, its bases first, then the overrides ("optim.lr=1e-4"). ConfigError names file and key."""
    return _typed(schema, _layers(path, overrides))


def load_options(schema: type[Recipe], overrides: Sequence[str]) -> Recipe:
    """The settings of a command without a recipe: defaults, then the overrides."""
    return _typed(schema, _command_line(overrides))


def load_train(path: str, overrides: Sequence[str]) -> TrainRecipe:
    """The training recipe of `path`; its `task` chooses the schema."""
    layers = _layers(path, overrides)
    tasks = [layer["task"] for _, layer in layers if "task" in layer]
    if not tasks or tasks[-1] not in TASKS:
        found = f"task={tasks[-1]}" if tasks else "no task"
        raise ConfigError(f"{path}: {found}; expected task: one of {', '.join(TASKS)}")
    for _, layer in layers:
        # The last one counts: a recipe may be based on another task's.
        layer.pop("task", None)
    return _typed(TASKS[tasks[-1]], layers)


def from_dict(content: dict[str, Any], source: str) -> TrainRecipe:
    """The training recipe that `to_dict` wrote into a checkpoint or export (`source`, for messages)."""
    task = content.get("task")
    if task not in TASKS:
        raise ConfigError(f"{source}: its recipe has task={task}; this version knows {', '.join(TASKS)}")
    # An interpolation would be resolved from this process's environment, which a foreign file has no business with.
    if "${" in json.dumps(content):
        raise ConfigError(f"{source}: its recipe has an interpolation (${{...}}); a resolved one has none")
    return _typed(TASKS[task], [(source, OmegaConf.create(part)) for part in _in_todays_keys(content)])


def _in_todays_keys(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The content in layers, a later one for each key that had another name once."""
    layers = [dict(content)]
    for section, key, todays in RENAMED:
        before = layers[0].get(section)
        if isinstance(before, dict) and key in before:
            layers[0][section] = {name: value for name, value in before.items() if name != key}
            layers.append(todays(before[key]))
    return layers


def to_dict(recipe: Any) -> dict[str, Any]:
    """A recipe as plain JSON-able values."""
    return dataclasses.asdict(recipe)


def to_yaml(recipe: Any) -> str:
    """A recipe as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(recipe)))


def _layers(path: str, overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """(source, content) from the furthest base to the command line."""
    layers: list[tuple[str, DictConfig]] = []
    current: Path | None = Path(path)
    while current is not None:
        if len(layers) == MAX_BASES:
            raise ConfigError(f"{path}: its chain of bases is longer than {MAX_BASES}: a file is its own base")
        content = _read(current)
        base = content.pop("base", None)
        layers.insert(0, (str(current), content))
        current = current.parent / base if base else None
    return [*layers, *_command_line(overrides)]


def _command_line(overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """(source, content) of each; a source that says which, for not all of OmegaConf's messages name the key."""
    return [(f"{text!r} on the command line", _override(text)) for text in overrides]


def _read(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe")
    try:
        content = OmegaConf.load(path)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected keys and values")
    return content


def _override(text: str) -> DictConfig:
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} on the command line: expected dotted.key=value")
    try:
        return OmegaConf.from_dotlist([text])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{text!r} on the command line: {str(error).splitlines()[0]}") from error


def _typed(schema: type[Recipe], layers: Sequence[tuple[str, DictConfig]]) -> Recipe:
    merged = OmegaConf.structured(schema)
    for source, content in layers:
        try:
            merged = OmegaConf.merge(merged, content)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{source}: {_explain(error)}") from error
    try:
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        source = layers[0][0] if layers else "the command line"
        raise ConfigError(f"{source}: {_explain(error)}") from error
    assert isinstance(recipe, schema)
    return recipe


def _explain(error: Exception) -> str:
    """One line that names the full key."""
    message = str(error).splitlines()[0]
    key = getattr(error, "full_key", None)
    if key is None:
        return message
    last = key.rpartition(".")[2]
    if message.startswith(f"Key '{last}' not in"):
        hint = message.partition("Did you mean:")[2].strip(" ?")
        return f"unknown key {key}" + (f"; did you mean {hint}?" if hint else "")
    return f"{key}: {message}"
