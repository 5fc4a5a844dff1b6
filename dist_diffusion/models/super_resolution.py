"""The super-resolution UNet (arXiv 2105.05233, section 3)."""

import torch
from torch.nn import functional as F

from dist_diffusion.models.options import SuperResolutionOptions
from dist_diffusion.models.unet import UNet


class SuperResolutionUNet(UNet):
    """A UNet that sees a smaller image, enlarged to x's size, as further channels."""

    def __init__(self, options: SuperResolutionOptions, recompute: bool) -> None:
        super().__init__(options, recompute, conditioning_channels=options.in_channels)

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None, low_res: torch.Tensor
    ) -> torch.Tensor:
        """As UNet, given low_res (N, C, h, w) in [-1, 1] as well."""
        enlarged = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, enlarged], dim=1), time, labels)
