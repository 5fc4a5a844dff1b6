"""Images to squares of one size, as ADM resizes and crops. Every random number is an argument."""

import math

from PIL import Image

from dist_diffusion.data import images, jpeg
from dist_diffusion.data.images import MAX_PIXELS, UndecodableError

MIN_CROP_FRACTION = 0.8
TOO_NARROW = f"{{}}x{{}} pixels, so narrow that it would become {{}}x{{}}, more than {MAX_PIXELS:,}; crop it first"

Crop = tuple[float, float, float]
"""Uniforms in [0, 1) that choose, in this order, the smaller side before cropping, the left edge and the top edge."""


def square(data: bytes, size: int, crop: Crop | None) -> Image.Image:
    """What training sees of an image file: its centre, or with `crop` another part of it.

    A JPEG that would be halved is decoded at that fraction of its size, which is several times faster: the same part
    of the picture as of the whole one, and nearly the same pixels. UndecodableError says why there is none.
    """
    side = size if crop is None else _side_before_crop(size, crop)
    frame = images.upright_frame(data)
    if frame is not None and min(frame.width, frame.height) >= 2 * side:
        return _square_of_fraction(data, frame, side, size, crop)
    image = images.decode(data) if frame is None else images.decode_frame(data, frame, 1)
    return fit(image, size) if crop is None else random_crop(image, size, crop)


def fit(image: Image.Image, size: int) -> Image.Image:
    """The centre square, its side scaled to `size`: halved by boxes while at least twice as large, then bicubic.

    UndecodableError for an image so narrow that scaling it would take the memory of a bomb.
    """
    return _crop(_resize_smaller_side(image, size), size, None)


def random_crop(image: Image.Image, size: int, crop: Crop) -> Image.Image:
    """A square of 80 to 100 % of the smaller side, scaled to `size`."""
    return _crop(_resize_smaller_side(image, _side_before_crop(size, crop)), size, crop)


def _square_of_fraction(data: bytes, frame: jpeg.Frame, side: int, size: int, crop: Crop | None) -> Image.Image:
    """The square by way of the picture at 1 / 2^k of its size, k as often as it would be halved."""
    halved, halvings = _halved((frame.width, frame.height), side)
    width, height = _scaled(halved, side)
    left, top = _corner(width, height, size, crop)
    scale = 1 << halvings
    decoded = images.decode_frame(data, frame, min(scale, jpeg.LARGEST_SCALE))
    image = decoded.reduce(scale // jpeg.LARGEST_SCALE) if scale > jpeg.LARGEST_SCALE else decoded
    # The last row and column may stand for fewer pixels than the others: the picture ends inside of them.
    x, y = frame.width / scale / width, frame.height / scale / height
    right, bottom = min((left + size) * x, image.width), min((top + size) * y, image.height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left * x, top * y, right, bottom))


def _side_before_crop(size: int, crop: Crop) -> int:
    return size + _pick(crop[0], math.ceil(size / MIN_CROP_FRACTION) - size)


def _resize_smaller_side(image: Image.Image, side: int) -> Image.Image:
    _, halvings = _halved(image.size, side)
    for _ in range(halvings):
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scaled = _scaled(image.size, side)
    return image if scaled == image.size else image.resize(scaled, Image.Resampling.BICUBIC)


def _halved(size: tuple[int, int], side: int) -> tuple[tuple[int, int], int]:
    """Width and height once the smaller is below twice `side`, and how often they were halved for it."""
    halvings = 0
    while min(size) >= 2 * side:
        size, halvings = (size[0] // 2, size[1] // 2), halvings + 1
    return size, halvings


def _scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with a smaller one of `side`."""
    scale = side / min(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    if width * height > MAX_PIXELS:
        raise UndecodableError(TOO_NARROW.format(*size, width, height))
    return width, height


def _crop(image: Image.Image, size: int, crop: Crop | None) -> Image.Image:
    left, top = _corner(image.width, image.height, size, crop)
    return image if image.size == (size, size) else image.crop((left, top, left + size, top + size))


def _corner(width: int, height: int, size: int, crop: Crop | None) -> tuple[int, int]:
    """Left and top edge of the square: the centre's, or where `crop` says."""
    if crop is None:
        return (width - size) // 2, (height - size) // 2
    return _pick(crop[1], width - size), _pick(crop[2], height - size)


def _pick(uniform: float, largest: int) -> int:
    """One of 0 ... largest, all equally likely."""
    return int(uniform * (largest + 1))
