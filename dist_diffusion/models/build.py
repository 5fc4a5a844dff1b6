"""The only builder of networks."""

from torch import nn

from dist_diffusion.models.classifier import Classifier
from dist_diffusion.models.options import ClassifierOptions, UNetOptions
from dist_diffusion.models.unet import UNet


def build(options: UNetOptions | ClassifierOptions) -> nn.Module:
    """The network of resolved options, with fresh weights from torch's global generator."""
    return UNet(options) if isinstance(options, UNetOptions) else Classifier(options)
