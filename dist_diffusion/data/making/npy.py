"""Latents as npy files."""

import io

import numpy as np

from dist_diffusion.data.images import UndecodableError


def encode(latent: np.ndarray) -> bytes:
    """The npy file of an array."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(latent), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The array of an npy file. UndecodableError where it is damaged, or holds values that are not finite."""
    try:
        latent = np.load(io.BytesIO(data), allow_pickle=False)
    # A damaged header fails in numpy's, zipfile's and Python's own parser, or asks for memory.
    except Exception as error:
        raise UndecodableError(f"no npy array: {error}") from error
    if not isinstance(latent, np.ndarray) or latent.ndim != 3 or latent.dtype.kind != "f":
        raise UndecodableError("no npy array of floating-point numbers, [C, H, W]")
    if not np.isfinite(latent).all():
        raise UndecodableError("it holds values that are not finite")
    return latent
