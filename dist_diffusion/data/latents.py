"""Latents in place of pixels: an array a sample, made once by the encoder that the model will be used with."""

from dataclasses import dataclass

import numpy as np

from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.making import npy
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.errors import ConfigError


@dataclass(frozen=True)
class LatentFormat:
    """What all arrays of a set are: shape (C, H, W) and dtype."""

    shape: tuple[int, int, int]
    dtype: str


def latent_format(manifest: Manifest) -> LatentFormat:
    """Of a set of latents. ConfigError where the set holds images."""
    if manifest.kind != "latents":
        raise ConfigError(f"data.latents=true, but {manifest.folder} holds images: leave it out")
    channels, height, width = manifest.statistics["shape"]
    return LatentFormat((channels, height, width), manifest.statistics["dtype"])


def read_latent(data: bytes, expected: LatentFormat) -> np.ndarray:
    """The array of an npy member. UndecodableError for anything but a finite array of the set's format."""
    array = npy.decode(data)
    if array.shape != expected.shape or str(array.dtype) != expected.dtype:
        raise UndecodableError(f"{array.dtype} of {array.shape}, but its set is {expected.dtype} of {expected.shape}")
    return array
