"""Which tensors a network has, and how a file's differ from them."""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions

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
        """A line for each kind, with every name."""
        kinds = {"missing": self.missing, "extra": self.extra, "of another shape": self.misshapen}
        return "\n".join(
            f"{len(names)} {kind}: {', '.join(map(printable, names))}" for kind, names in kinds.items() if names
        )


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


def nearest(found: Shapes, presets: Mapping[str, Shapes]) -> str:
    """What to say of the presets that have most in common with a file's tensors."""
    likeness = {name: _likeness(needed, found) for name, needed in presets.items()}
    most = max(likeness.values())
    names = [name for name, value in likeness.items() if value == most]
    differ = len(compare(presets[names[0]], found))
    if not differ:
        return f"it fits {' or '.join(names)}"
    if 2 * num_known(found, presets) < max(len(found), 1):
        return "no preset is near"
    return f"the nearest preset is {' or '.join(names)}, but for {differ} tensor{'s' if differ > 1 else ''}"


def num_known(found: Collection[str], presets: Mapping[str, Shapes]) -> int:
    """How many of a file's names the preset has that has most of them."""
    return max(len(needed.keys() & set(found)) for needed in presets.values())


def common_prefix(names: Collection[str]) -> str:
    """What all names begin with, up to a dot ("module." of DistributedDataParallel); else ""."""
    first, last = min(names, default=""), max(names, default="")
    alike = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    return first[: first.rfind(".", 0, alike) + 1]


def printable(name: str) -> str:
    """A name out of a foreign file, safe to show: no terminal codes, no line breaks."""
    return name if name.isprintable() else ascii(name)


def _likeness(needed: Shapes, found: Shapes) -> tuple[float, int]:
    """Of all names, the share that is common plus the share that is alike in shape too; then how few tensors differ."""
    names, every = needed.keys() & found.keys(), needed.keys() | found.keys()
    alike = sum(needed[name] == found[name] for name in names)
    return (len(names) + alike) / len(every), -len(compare(needed, found))
