"""Bytes to uint8 RGB squares, as ADM resizes and crops. Every random number is an argument."""

import io
import math

import numpy as np
from PIL import Image

from dist_diffusion.errors import DataError

# A short list: Pillow's other plugins read formats that no image set is made of, some by calling programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MIN_CROP_FRACTION = 0.8


class UndecodableError(DataError):
    """The bytes are no image that can be read; the message says why."""


def decode(data: bytes) -> Image.Image:
    """The whole image as RGB. UndecodableError where it is damaged, or of a kind that RGB would silently clip."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise UndecodableError(f"grey values of more than 8 bits (Pillow mode {image.mode}); convert it first")
            return image.convert("RGB")
    except UndecodableError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on damaged bytes
        reason = "no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UndecodableError(f"{type(error).__name__}: {reason}") from error


def fit(image: Image.Image, size: int) -> Image.Image:
    """The centre square, its side scaled to `size`: halved by boxes while at least twice as large, then bicubic."""
    image = _resize_smaller_side(image, size)
    return _crop(image, (image.width - size) // 2, (image.height - size) // 2, size)


def random_crop(image: Image.Image, size: int, uniforms: tuple[float, float, float]) -> Image.Image:
    """A square of 80 to 100 % of the smaller side, scaled to `size`.

    `uniforms` in [0, 1) choose, in this order, the smaller side before cropping, the left edge and the top edge.
    """
    u_size, u_left, u_top = uniforms
    image = _resize_smaller_side(image, size + _pick(u_size, math.ceil(size / MIN_CROP_FRACTION) - size))
    return _crop(image, _pick(u_left, image.width - size), _pick(u_top, image.height - size), size)


def to_uint8(image: Image.Image, flip: bool = False) -> np.ndarray:
    """uint8 [H, W, 3], contiguous; mirrored left to right where `flip`."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)


def _resize_smaller_side(image: Image.Image, size: int) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _pick(uniform: float, largest: int) -> int:
    """One of 0 ... largest, all equally likely."""
    return int(uniform * (largest + 1))
