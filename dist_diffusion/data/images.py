"""Image files to pixels: always RGB, upright, or the reason why not."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dist_diffusion.data import jpeg
from dist_diffusion.errors import DataError

# A short list: Pillow's other plugins read formats that no image set is made of, some by calling programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_478_485
"""Pillow's own bound, beyond which it merely warns: a small file can claim to hold far more than memory does."""

CUT_SHORT = "the {} file is cut short"
TOO_LARGE = f"{{}} pixels are more than the {MAX_PIXELS:,} that are decoded; resize it first"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


class UndecodableError(DataError):
    """The bytes are no image that can be read; the message says why."""


@dataclass(frozen=True)
class Header:
    """What an image file says of itself: sizes in pixels, as stored; orientation as EXIF counts them, 1 is upright."""

    width: int
    height: int
    format: str
    mode: str
    orientation: int


def inspect(data: bytes) -> Header:
    """The header, without decoding a pixel. UndecodableError for what `decode` refuses, and for a file cut short."""
    frame = jpeg.read_frame(data)
    if frame is not None and not frame.has_exif:
        check_size(frame.width, frame.height)
        if not _is_complete(data, "JPEG", frame):
            raise UndecodableError(CUT_SHORT.format("JPEG"))
        return Header(frame.width, frame.height, "JPEG", frame.mode, 1)
    with _opened(data) as image:
        image_format = image.format or ""
        if not _is_complete(data, image_format, frame):
            raise UndecodableError(CUT_SHORT.format(image_format))
        return Header(*image.size, image_format, image.mode, _orientation(image))


def decode(data: bytes) -> Image.Image:
    """The image as RGB, upright. UndecodableError where it is damaged, or RGB would lose something of it."""
    frame = jpeg.read_frame(data)
    if frame is not None and not frame.has_exif:
        return decode_frame(data, frame, 1)
    with _opened(data) as image:
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        turn = _UPRIGHT.get(_orientation(image))
        return rgb if turn is None else rgb.transpose(turn)


def upright_frame(data: bytes) -> jpeg.Frame | None:
    """The header of a plain JPEG file whose picture is stored as it is seen; None for anything else."""
    frame = jpeg.read_frame(data)
    if frame is not None and frame.has_exif:
        with _opened(data) as image:
            return None if _orientation(image) in _UPRIGHT else frame
    return frame


def decode_frame(data: bytes, frame: jpeg.Frame, scale: int) -> Image.Image:
    """A plain JPEG as RGB, at 1 / `scale` of its size: see `jpeg.decode`. UndecodableError where it is damaged."""
    check_size(frame.width, frame.height)
    try:
        image = jpeg.decode(data, frame, scale)
    except ValueError as error:
        raise UndecodableError(f"the JPEG file is damaged or cut short ({error})") from error
    return image if image.mode == "RGB" else image.convert("RGB")


def to_uint8(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, 3], read-only."""
    # Quicker than asking Pillow for an array.
    return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.height, image.width, 3)


def mirrored(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def check_size(width: int, height: int) -> None:
    """UndecodableError for more pixels than are decoded."""
    if width * height > MAX_PIXELS:
        raise UndecodableError(TOO_LARGE.format(f"{width}x{height}"))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The file's first look: its header is read and fit to go on with; whatever fails inside is an UndecodableError."""
    if not data:
        raise UndecodableError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_kind(image)
            yield image
    except (UndecodableError, MemoryError):  # too little memory is nothing that the file can be blamed for
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError(TOO_LARGE.format("many")) from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged bytes
        reason = "no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise UndecodableError(f"{type(error).__name__}: {reason}") from error


def _check_kind(image: Image.Image) -> None:
    check_size(*image.size)
    if image.mode.startswith(("I", "F")) or any(str(tile.args).endswith(";16B") for tile in getattr(image, "tile", ())):
        raise UndecodableError("more than 8 bits a channel; convert it first")
    # Not asked of JPEG: some cameras append a second picture to the one that is meant.
    if image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
        frames = getattr(image, "n_frames", "several")
        raise UndecodableError(f"animated ({frames} frames); save the frame that is meant")


def _orientation(image: Image.Image) -> int:
    """EXIF's; 1 where there is none, or none that can be read."""
    if "exif" not in image.info:
        return 1
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged tag says nothing of the pixels
        return 1
    return found if found in _UPRIGHT else 1


def _is_complete(data: bytes, image_format: str, frame: jpeg.Frame | None) -> bool:
    """Whether the file's end is there, told without decoding."""
    if image_format == "PNG":
        return data.rfind(b"IEND") > data.rfind(b"IDAT")
    if image_format == "GIF":
        return data.rstrip(b"\0").endswith(b";")
    if image_format == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    if image_format == "BMP":
        return len(data) >= int.from_bytes(data[2:6], "little")
    # A thumbnail in the header has an end of its own; entropy-coded data hold neither mark. What a camera appends, such
    # as a film, holds both by chance.
    if frame is not None:
        return data.find(_END_OF_IMAGE, frame.scan) >= 0
    return data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN)
