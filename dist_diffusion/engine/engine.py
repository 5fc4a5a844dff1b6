"""The one training engine: DeepSpeed around a network, with its EMA, gate for non-finite steps and learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import nn

from dist_diffusion import draws
from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed.group import Group, set_timeouts
from dist_diffusion.engine.backend import ZERO_SUPPORTED_OPTIMIZERS, deepspeed, supports_fp16
from dist_diffusion.engine.clock import ForwardClock
from dist_diffusion.engine.ds_config import ds_config
from dist_diffusion.engine.ema import ShardedEma
from dist_diffusion.engine.layout import clear_padding, local_shards, owned_shards, torch_optimizer
from dist_diffusion.engine.optimizer import GatedAdamW, GatedNAdamW, learning_rate, make_optimizer
from dist_diffusion.engine.state import make_state
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.layers import TimestepSequential

ZERO_SUPPORTED_OPTIMIZERS.extend((GatedAdamW, GatedNAdamW))

LossOf = Callable[[int], torch.Tensor]
"""The loss of the i-th micro-batch, with a graph through the engine."""
At = Callable[[str], None]
VERSIONS_A_BLOCK = 4
"""Of compiled code: with gradients and without, and for a last batch of another size."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step on this rank."""

    loss: torch.Tensor
    """Mean over this rank's micro-batches, on the device."""
    grad_norm: float | None
    """Before clipping, over all ranks; None where it is not finite."""
    applied: bool
    """False where the gradients were not finite: nothing was updated."""
    learning_rate: float
    loss_scale: float | None
    """That this step had; None but in fp16."""


class TrainingEngine:
    """Owns the network's training state. `__call__` is the network's forward pass in the configured precision."""

    def __init__(self, module: nn.Module, recipe: TrainRecipe, group: Group) -> None:
        self.recipe, self.group = recipe, group
        self.total_images = recipe.train.steps * recipe.train.global_batch
        self.clock = ForwardClock(group.device)
        refuse_unsupported(recipe, group.device)
        if recipe.engine.compile:
            compile_blocks(module)
        optimizer = make_optimizer(module.to(group.device), recipe.optim)
        try:
            self.deepspeed: Any = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=ds_config(recipe, group.world_size, sum(p.numel() for p in module.parameters())),
                dist_init_required=False,
            )[0]
        except pydantic.ValidationError as error:
            wrong = error.errors()[0]
            where = ".".join(map(str, wrong["loc"]))
            raise ConfigError(f"deepspeed.extra.zero_optimization.{where}: {wrong['msg']}") from error
        set_timeouts(recipe.engine.timeout_s)
        # Adam's state exists from the start: memory shows at once, and a run can be saved before its first update.
        for shard in local_shards(self.deepspeed):
            clear_padding(shard)
            make_state(self.deepspeed, shard)
        self.ema = ShardedEma(owned_shards(self.deepspeed), recipe.ema)
        self.updates = 0
        """Of the weights: the steps that were not held back."""
        self.scaler = loss_scaler(self.deepspeed) if recipe.engine.precision == "fp16" else None

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None, low_res: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The network's forward pass; `low_res` is for those that take one."""
        return self.deepspeed(x, time, labels) if low_res is None else self.deepspeed(x, time, labels, low_res)

    def step(self, step: int, num_micro_batches: int, loss_of: LossOf, at: At = lambda stage: None) -> StepResult:
        """Step number `step` (from 0): forward and backward of each micro-batch, then the update of weights and EMA.

        `at` is told what it is at: forward, backward, update.
        """
        rate, scale = self._set_learning_rate(step), self.loss_scale
        losses = []
        for i in range(num_micro_batches):
            torch.manual_seed(draws.key(self.recipe.seed, f"dropout/{step}/{self.group.rank}", i))
            at("forward")
            with self.clock:
                loss = loss_of(i)
            losses.append(loss.detach().float())
            at("backward")
            self.deepspeed.backward(loss)
            at("update")
            norm = self._gate() if i == num_micro_batches - 1 else None
            self.deepspeed.step()
        norm, applied = self._outcome(norm)
        if applied:
            self.updates += 1
            self.ema.update(self.updates)
        return StepResult(torch.stack(losses).mean(), norm if applied else None, applied, rate, scale)

    @property
    def loss_scale(self) -> float | None:
        """Of fp16; else None."""
        return None if self.scaler is None else float(self.scaler.cur_scale)

    def at_the_floor(self, loss_scale: float | None) -> bool:
        """Whether an overflow at this loss scale is no longer a matter of it."""
        return loss_scale is None or loss_scale <= self.recipe.engine.loss_scale_floor

    def _set_learning_rate(self, step: int) -> float:
        batch = self.recipe.train.global_batch
        rate = learning_rate(self.recipe.optim, step * batch, batch, self.total_images)
        for param_group in torch_optimizer(self.deepspeed).param_groups:
            param_group["lr"] = rate
        return rate

    def _gate(self) -> float | None:
        """At stage 0 DeepSpeed neither reports a norm nor skips: measure it, and hold a non-finite update back."""
        if self.deepspeed.zero_optimization_stage():
            return None
        gradients = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients).item()
        optimizer = torch_optimizer(self.deepspeed)
        assert isinstance(optimizer, GatedAdamW)
        optimizer.apply_updates = math.isfinite(norm)
        return norm

    def _outcome(self, stage_0_norm: float | None) -> tuple[float, bool]:
        """The norm of all gradients, and whether the update was made; the same on all ranks."""
        if stage_0_norm is not None:
            return stage_0_norm, math.isfinite(stage_0_norm)
        return float(self.deepspeed.get_global_grad_norm()), bool(self.deepspeed.was_step_applied())


def refuse_unsupported(recipe: TrainRecipe, device: torch.device) -> None:
    """ConfigError for a precision that the device does not have."""
    if recipe.engine.precision == "fp16" and not supports_fp16():
        raise ConfigError(f"engine.precision=fp16: {device.type} does not train in it here: use bf16, autocast or fp32")


def compile_blocks(module: nn.Module) -> None:
    """torch.compile of every block by itself: what they share is compiled once, and names stay as they are."""
    blocks = [block for block in module.modules() if isinstance(block, TimestepSequential)]
    # They are all of one class: beyond so many versions of its forward pass torch would leave the rest as it is.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS_A_BLOCK * len(blocks))
    for block in blocks:
        block.compile()


def loss_scaler(engine: Any) -> Any:
    """DeepSpeed's, made not to end the run by itself at the floor: how often is too often, the recipe says."""
    scaler = engine.optimizer.loss_scaler
    scaler.raise_error_at_min_scale = False
    return scaler
