"""Which tensors a network has, and how a file's differ from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions

MAX_NAMED = 20
"""Of each kind of mismatch, how many are named; the rest is counted."""

Shapes = dict[str, tuple[int, ...]]


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes, in order."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def network_shapes(options: UNetOptions | ClassifierOptions) -> Shapes:
    """Those of the network of resolved options, which is built without memory."""
    with torch.device("meta"):
        return shapes_of(build(options).state_dict())


@dataclass(frozen=True)
class Mismatch:
    """What a network needs and a file has not, or the other way round."""

    missing: list[str]
    extra: list[str]
    misshapen: list[str]
    """With both shapes."""

    def __len__(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "extra": self.extra, "of another shape": self.misshapen}
        return "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names)


def compare(needed: Shapes, found: Shapes) -> Mismatch:
    """How `found` differs from what is needed; empty (false) where it does not."""
    return Mismatch(
        missing=[name for name in needed if name not in found],
        extra=[name for name in found if name not in needed],
        misshapen=[
            f"{name} {found[name]}, expected {shape}"
            for name, shape in needed.items()
            if name in found and found[name] != shape
        ],
    )


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
