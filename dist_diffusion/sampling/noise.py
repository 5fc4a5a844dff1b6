"""The noise of sampled images: one CPU generator an image, so that image i is image i in any batch."""

from collections.abc import Sequence

import torch

from dist_diffusion import draws


class ImageNoise:
    """Each call gives the next standard normal (N, C, H, W) of every image's own sequence, on `device`."""

    def __init__(
        self, seed: int, stream: str, indices: Sequence[int], shape: tuple[int, int, int], device: torch.device | str
    ) -> None:
        self._generators = [draws.generator(seed, stream, i) for i in indices]
        self._shape = shape
        self._device = device

    def __call__(self) -> torch.Tensor:
        """The next draw."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._generators]).to(self._device)
