"""The optimizer and its learning rate."""

from collections.abc import Callable

import torch

from dist_diffusion.config.schema import OptimOptions


class GatedAdamW(torch.optim.AdamW):
    """AdamW whose next update can be held back: at ZeRO stage 0 DeepSpeed itself would apply a non-finite one."""

    apply_updates = True

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The update, unless it is held back."""
        assert closure is None
        if self.apply_updates:
            super().step()
        return None


def make_optimizer(module: torch.nn.Module, options: OptimOptions) -> GatedAdamW:
    """AdamW over all parameters (arXiv 1711.05101)."""
    return GatedAdamW(
        module.parameters(),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )


def learning_rate(options: OptimOptions, images: int, batch: int, total_images: int) -> float:
    """The rate of the step that begins after `images` images: linear warm-up, constant or linear decay to zero."""
    rate = options.lr
    if options.warmup_images:
        rate *= min(1.0, (images + batch) / options.warmup_images)
    if options.anneal:
        rate *= 1 - images / total_images
    return rate
