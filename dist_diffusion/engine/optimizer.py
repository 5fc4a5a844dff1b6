"""The optimizer and its learning rate."""

import math
from collections.abc import Callable

import torch

from dist_diffusion.config.schema import OptimOptions


class GatedAdamW(torch.optim.AdamW):
    """AdamW, or Adam, whose next update can be held back: at stage 0 DeepSpeed itself would apply a non-finite one."""

    apply_updates = True

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The update, unless it is held back."""
        assert closure is None
        if self.apply_updates:
            super().step()
        return None


def make_optimizer(module: torch.nn.Module, options: OptimOptions) -> GatedAdamW:
    """Over all parameters: AdamW (arXiv 1711.05101), or Adam (arXiv 1412.6980), whose decay is added to gradients."""
    optimizer = GatedAdamW(
        module.parameters(),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for param_group in optimizer.param_groups:
        param_group["decoupled_weight_decay"] = options.name == "adamw"
    return optimizer


def learning_rate(options: OptimOptions, images: int, batch: int, total_images: int) -> float:
    """The rate of the step that begins after `images` images: linear warm-up, then what optim.decay says."""
    rate = options.lr * _decay(options, images, total_images)
    if options.warmup_images:
        rate *= min(1.0, (images + batch) / options.warmup_images)
    return rate


def _decay(options: OptimOptions, images: int, total_images: int) -> float:
    """Of the full rate: 1 up to decay_from_images."""
    start = options.decay_from_images
    if options.decay == "none" or images <= start:
        return 1.0
    if options.decay == "inverse_sqrt":
        return math.sqrt(start / images)
    done = (images - start) / (total_images - start)
    return 1 - done if options.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
