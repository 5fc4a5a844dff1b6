"""JPEG files by the quick way: the header read here, the pixels by Pillow's decoder without its own search for it.

Image.open walks the markers in Python and feeds the decoder in pieces, which for 32-pixel images takes longer than
decoding. What is not plain (CMYK, 12 bits, anything odd between the markers) is left to it.
"""

import struct
from dataclasses import dataclass

from PIL import Image

LARGEST_SCALE = 8
"""What libjpeg divides sizes by at most; it decodes a half and a quarter, too."""

_START = b"\xff\xd8"
_EXIF = b"Exif\0\0"
# Frames that libjpeg decodes (baseline, extended, progressive), by their markers.
_FRAMES = (0xC0, 0xC1, 0xC2)
_APP1, _START_OF_SCAN = 0xE1, 0xDA
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Frame:
    """Size in pixels, mode, whether the file says anything of its orientation, and the byte where its pixels begin."""

    width: int
    height: int
    mode: str
    has_exif: bool
    scan: int


def read_frame(data: bytes) -> Frame | None:
    """The header of a plain JPEG file; None for anything else."""
    if not data.startswith(_START):
        return None
    place, end, found, has_exif = 2, len(data) - 10, None, False
    while place < end and data[place] == 0xFF:
        marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
        if marker == _START_OF_SCAN:
            return None if found is None else Frame(*found, has_exif, place)
        if marker in _FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
            if bits != 8 or components not in _MODES or not width or not height:
                return None
            found = width, height, _MODES[components]
        elif marker == _APP1 and data.startswith(_EXIF, place + 4):
            has_exif = True
        elif not 0xC0 <= marker < 0xFF or 0xD0 <= marker <= 0xD9:
            return None
        place += 2 + length
    return None


def decode(data: bytes, frame: Frame, scale: int) -> Image.Image:
    """The pixels at 1 / `scale` of the size, rounded up: 1, or one of the powers of two up to LARGEST_SCALE.

    A pixel then stands for scale x scale of the picture's, of which the last ones may lie outside of it. ValueError for
    bytes that are damaged or cut short.
    """
    size = -(-frame.width // scale), -(-frame.height // scale)
    return Image.frombytes(frame.mode, size, data, "jpeg", frame.mode, "", scale, 0)
