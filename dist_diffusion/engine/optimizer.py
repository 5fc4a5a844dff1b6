"""The optimizer and its learning rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

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


class GatedNAdamW(GatedAdamW):
    """The same with Nesterov's momentum (Dozat 2016): the step uses the momentum as it will be after the next gradient,
    if that is like this one. Its state is AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """The update, unless it is held back."""
        assert closure is None
        for param_group in self.param_groups if self.apply_updates else ():
            _nesterov(param_group, self.state)
        return None


def _nesterov(param_group: dict[str, Any], state: Mapping[torch.Tensor, dict[str, Any]]) -> None:
    """p <- (1 - lr wd) p - lr (b1 m / (1 - b1^(t+1)) + (1 - b1) g / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)."""
    params = [p for p in param_group["params"] if p.grad is not None]
    if not params:
        return
    gradients = [p.grad for p in params]
    steps, first, second = ([state[p][key] for p in params] for key in ("step", "exp_avg", "exp_avg_sq"))
    rate, (b1, b2) = param_group["lr"], param_group["betas"]
    torch._foreach_add_(steps, 1)
    t = float(steps[0])
    torch._foreach_lerp_(first, gradients, 1 - b1)
    torch._foreach_mul_(second, b2)
    torch._foreach_addcmul_(second, gradients, gradients, value=1 - b2)
    ahead = torch._foreach_mul(first, b1 / (1 - b1 ** (t + 1)))
    torch._foreach_add_(ahead, gradients, alpha=(1 - b1) / (1 - b1**t))
    spread = torch._foreach_sqrt(second)
    torch._foreach_div_(spread, (1 - b2**t) ** 0.5)
    torch._foreach_add_(spread, param_group["eps"])
    torch._foreach_mul_(params, 1 - rate * param_group["weight_decay"])
    torch._foreach_addcdiv_(params, ahead, spread, value=-rate)


def make_optimizer(module: torch.nn.Module, options: OptimOptions) -> GatedAdamW:
    """Over all parameters: AdamW (arXiv 1711.05101), NAdamW, or Adam (arXiv 1412.6980): decay is added to gradients."""
    optimizer = (GatedNAdamW if options.name == "nadamw" else GatedAdamW)(
        module.parameters(),
        lr=options.lr,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for param_group in optimizer.param_groups:
        param_group["decoupled_weight_decay"] = options.name != "adam"
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
