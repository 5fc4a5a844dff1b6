"""Which settings a run may change between two starts."""

from typing import Any, NamedTuple

from dist_diffusion.config.load import to_dict
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.errors import CheckpointError

PROTECTED = (
    "task",
    "seed",
    "data.image_size",
    "data.random_flip",
    "data.random_crop",
    "data.canonical_streams",
    "data.shuffle_block",
    "data.latents",
    "data.latent_scale",
    "diffusion",
    "model",
    "objective",
    "train.global_batch",
    "ema.decays",
    "ema.stds",
)
"""With the manifest's checksum, what makes a run this run (data.shards may move: the manifest tells)."""


ALLOW = "allow_config_change"


class Change(NamedTuple):
    """One key that differs."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.before} -> {self.now}"


def changes(before: TrainRecipe, now: TrainRecipe) -> list[Change]:
    """Every key that differs, in the recipe's order."""
    old, new = flatten(to_dict(before)), flatten(to_dict(now))
    keys = list(dict.fromkeys([*old, *new]))
    return [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key) and key != ALLOW]


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, dict) and value
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def refuse_protected(changed: list[Change], checkpoint: str, allow: bool) -> None:
    """CheckpointError that lists every protected key that differs from the checkpoint's, unless that is allowed."""
    wrong = [c for c in changed if any(c.key == p or c.key.startswith(f"{p}.") for p in PROTECTED)]
    if wrong and not allow:
        listed = "; ".join(map(str, wrong))
        raise CheckpointError(
            f"{checkpoint} is of another run, the recipe differs in {listed}. "
            f"Give the recipe it was made with, or another run_dir; to go on all the same, {ALLOW}=true"
        )
