"""What of a sample's reading enters the batch digest, for a whole step at once: one by one is slow."""

import numpy as np

from dist_diffusion.data.views import Views

_PLAIN = [
    ("sha256_length", "<u4"),
    ("sha256", "V32"),
    ("within_length", "<u4"),
    ("within", "<u8"),
    ("crop_length", "<u4"),
    ("flip_length", "<u4"),
    ("flip", "?"),
]
_CROPPED = [*_PLAIN[:5], ("crop", "<f8", (3,)), *_PLAIN[5:]]


def heads(sha256s: np.ndarray, within: np.ndarray, views: Views) -> list[bytes]:
    """Of n samples the shard's sha256 (V32 [n]), the index within it (int64 [n]), crop and flip, each after its length.

    The draws follow them: see docs/data.md.
    """
    packed = np.empty(len(within), dtype=_PLAIN if views.crops is None else _CROPPED)
    packed["sha256_length"], packed["within_length"], packed["flip_length"] = 32, 8, 1
    packed["sha256"], packed["within"], packed["flip"] = sha256s, within, views.flips
    packed["crop_length"] = 0 if views.crops is None else 24
    if views.crops is not None:
        packed["crop"] = views.crops
    content, size = packed.tobytes(), packed.dtype.itemsize
    return [content[start : start + size] for start in range(0, len(content), size)]
