"""How a run sees its samples: the flips and crops of positions, and an image file under one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_diffusion.config.schema import DataOptions
from dist_diffusion.data import images, squares
from dist_diffusion.draws import uniform

CROP_STREAMS = ("crop_size", "crop_x", "crop_y")


@dataclass(frozen=True)
class Views:
    """Of n positions: which are mirrored, bool [n], and the crops' uniforms, float64 [n, 3], or None without crops."""

    flips: np.ndarray
    crops: np.ndarray | None


def views_at(options: DataOptions, seed: int, positions: Sequence[int]) -> Views:
    """The views of positions of the run."""
    flips = np.zeros(len(positions), dtype=bool)
    if options.random_flip:
        flips[:] = [uniform(seed, "flip", j) < 0.5 for j in positions]
    if not options.random_crop:
        return Views(flips, None)
    crops = [[uniform(seed, stream, j) for stream in CROP_STREAMS] for j in positions]
    return Views(flips, np.array(crops, dtype="<f8"))


def see(data: bytes, crop: Sequence[float] | None, flip: bool, out: np.ndarray) -> None:
    """Write an image file's pixels, cropped and mirrored, to uint8 [H, W, 3]. UndecodableError says why it cannot."""
    uniforms = None if crop is None else (float(crop[0]), float(crop[1]), float(crop[2]))
    square = squares.square(data, len(out), uniforms)
    out[...] = images.to_uint8(images.mirrored(square) if flip else square)
