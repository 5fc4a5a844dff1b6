"""The only builder of networks."""

from torch import nn

from dist_diffusion.models.classifier import Classifier
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions
from dist_diffusion.models.super_resolution import SuperResolutionUNet
from dist_diffusion.models.unet import UNet


def build(options: UNetOptions | ClassifierOptions, recompute: bool = False) -> nn.Module:
    """The network of resolved options, with fresh weights from torch's global generator.

    `recompute` trades time for memory in training; the network is the same.
    """
    if isinstance(options, SuperResolutionOptions):
        return SuperResolutionUNet(options, recompute)
    return UNet(options, recompute) if isinstance(options, UNetOptions) else Classifier(options, recompute)
