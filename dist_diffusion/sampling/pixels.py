"""Images as files hold them and as networks see them."""

from collections.abc import Sequence

import numpy as np
import torch


def from_uint8(images: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Uint8 NHWC as float32 NCHW in [-1, 1]."""
    # Copied: images read from a file are not writable, and torch would warn.
    return torch.tensor(images, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """Images in [-1, 1], NCHW, as uint8 NHWC (truncated, as the released samplers do)."""
    pixels = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def not_finite(values: torch.Tensor, indices: Sequence[int]) -> list[int]:
    """The indices of images of whose values (N, ...) one is not finite."""
    finite = values.isfinite().reshape(len(values), -1).all(dim=1).tolist()
    return [index for index, is_finite in zip(indices, finite, strict=True) if not is_finite]
