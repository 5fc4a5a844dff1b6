"""The conditions that checks are made of."""

import functools
import math
from typing import Any

from dist_diffusion.errors import ConfigError


def require(recipe: object, *keys: str) -> None:
    """ConfigError for the first of `keys` that is not given."""
    for key in keys:
        if get(recipe, key) is None:
            raise ConfigError(f"{key} is not given: add {key}=... to the command line or the recipe")


def get(recipe: object, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(getattr, key.split("."), recipe)


def in_range(recipe: object, key: str, low: float, high: float = math.inf, prefix: str = "") -> None:
    """ConfigError where a number that is given lies outside; nan lies in no range. `prefix` is of the key."""
    value = get(recipe, key)
    if value is not None and not low <= value <= high:
        expected = f"{low} to {high}" if math.isfinite(high) else f"{low} or more"
        raise ConfigError(f"{prefix and prefix + '.'}{key}={value}: expected {expected}")


def above_zero(recipe: object, key: str, prefix: str = "") -> None:
    """ConfigError where a number is not positive and finite."""
    if not 0 < get(recipe, key) < math.inf:
        raise ConfigError(f"{prefix and prefix + '.'}{key}={get(recipe, key)}: expected a number above 0")
