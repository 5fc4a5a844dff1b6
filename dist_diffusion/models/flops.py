"""How many floating-point operations a network costs, counted on the network itself."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions

TRAINING_PASSES = 3
"""A backward pass has two products for each of the forward pass: with respect to input and to weights."""


def forward_flops(options: UNetOptions | ClassifierOptions) -> int:
    """Of one image through the network of resolved options: convolutions and matrix products, attention's included.

    A multiplication and an addition count as two. (The "Gflops" of arXiv 2212.09748 and most papers' count one.)
    """
    assert options.image_size
    with torch.device("meta"):
        network = build(options)
        image = torch.empty(1, options.in_channels, options.image_size, options.image_size)
        given = [image, torch.empty(1), torch.empty(1, dtype=torch.int64)]
        if isinstance(options, SuperResolutionOptions):
            given.append(torch.empty(1, options.in_channels, options.low_res_size, options.low_res_size))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*given)
    return counter.get_total_flops()


def training_flops(options: UNetOptions | ClassifierOptions) -> int:
    """Of one image in training. What recomputation adds is no work of the model's and not in it."""
    return TRAINING_PASSES * forward_flops(options)
