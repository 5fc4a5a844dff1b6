"""Pixels as PNG files whose bytes no library's version can change: stored, not compressed.

zlib and its replacements compress alike images to different bytes, and a shard's checksum is part of the data order.
"""

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2
_LARGEST_STORED_BLOCK = 65_535


def encode(pixels: np.ndarray) -> bytes:
    """The PNG file of uint8 [H, W], grey, or [H, W, 3], RGB."""
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, -1)
    rows = np.zeros((height, 1 + lines.shape[1]), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = lines
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if pixels.ndim == 2 else _RGB, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", _stored(rows.tobytes())) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _stored(content: bytes) -> bytes:
    """A zlib stream of uncompressed deflate blocks."""
    parts = [b"\x78\x01"]
    for begin in range(0, len(content), _LARGEST_STORED_BLOCK):
        block = content[begin : begin + _LARGEST_STORED_BLOCK]
        is_last = begin + len(block) == len(content)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", zlib.adler32(content))])
