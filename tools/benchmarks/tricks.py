"""What makes a training step fast, each against the same code without it: there the peer is our own code.

A trick is measured where it acts: the whole step where it concerns all of it, else the part alone.
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.setting import (
    BATCH,
    IMAGE_SIZE,
    WITH_FULL_RESOLUTION,
    our_network,
    our_training_step,
    process_group,
    random_weights,
    recipe_of,
    task_batch,
)
from benchmarks.timing import Row, alternate, compared
from dist_diffusion.config.schema import OptimOptions
from dist_diffusion.engine.optimizer import make_optimizer
from dist_diffusion.models import layers
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.tasks.build import build as build_task

Call = Callable[[], object]
NUM_GROUPS = 4
"""Of measurements, which share the time."""


def bench_tricks(seconds: float) -> list[Row]:
    """All of them, on the network with attention at full resolution too."""
    share, options = seconds / NUM_GROUPS, WITH_FULL_RESOLUTION
    state = random_weights(options)
    return [
        *whole_steps(share, options, state),
        *memory_format(share, options, state),
        *attention(share, options),
        *optimizer(share, state),
    ]


def against(name: str, seconds: float, ours: Call, peer: Call) -> Row:
    """One row of two calls over a batch."""
    taken = alternate({"ours": ours, "peer": peer}, seconds)
    return compared(name, BATCH, taken["ours"], taken["peer"])


def whole_steps(seconds: float, options: UNetOptions, state: dict[str, torch.Tensor]) -> list[Row]:
    """bf16 against fp32, and keeping activations against recomputing them."""
    with process_group() as group:
        recipes = {
            "all": recipe_of(options, "autocast"),
            "bf16 autocast": recipe_of(options, "fp32"),
            "kept activations": recipe_of(options, "autocast", recompute=True),
        }
        steps = {name: our_training_step(recipe, state, group) for name, recipe in recipes.items()}
        taken = alternate(steps, seconds)
    return [compared(f"training step: {name}", BATCH, taken["all"], taken[name]) for name in steps if name != "all"]


def memory_format(seconds: float, options: UNetOptions, state: dict[str, torch.Tensor]) -> list[Row]:
    """channels_last activations against contiguous ones."""
    network, batch = our_network(options, state), task_batch(0)
    task = build_task(recipe_of(options, "autocast"), torch.device("cpu"))

    def forward_and_backward() -> None:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            task.loss(network, batch).loss.backward()

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            task.loss(network, batch)

    calls = {"forward": forward, "forward and backward": forward_and_backward}
    return [
        against(f"{name}: channels_last", seconds / 2, call, patched("MEMORY_FORMAT", torch.contiguous_format, call))
        for name, call in calls.items()
    ]


def attention(seconds: float, options: UNetOptions) -> list[Row]:
    """Plain products for short sequences in bf16 against the fused kernel, at the network's own sizes."""
    rows = []
    short = [size for size in options.attention_resolutions if size**2 <= layers.SHORT]
    for size in short:
        width = options.channels * int(options.channel_mult[(IMAGE_SIZE // size).bit_length() - 1])
        qkv = torch.randn(BATCH, size**2, 3 * width, dtype=torch.bfloat16, requires_grad=True)

        def forward_and_backward(qkv: torch.Tensor = qkv) -> object:
            return torch.autograd.grad(layers.attend(qkv, options.num_heads, new_order=False).sum(), qkv)

        fused = patched("SHORT", 0, forward_and_backward)
        name = f"attention over {size**2} positions: plain products"
        rows.append(against(name, seconds / len(short), forward_and_backward, fused))
    return rows


def optimizer(seconds: float, state: dict[str, torch.Tensor]) -> list[Row]:
    """AdamW in one pass over the weights against an operation at a time; one flat tensor, as ZeRO has it."""
    num = sum(tensor.numel() for tensor in state.values())
    module = nn.Module()
    module.flat = nn.Parameter(torch.randn(num))
    module.flat.grad = torch.randn(num)
    fused = make_optimizer(module, OptimOptions())
    unfused = make_optimizer(module, OptimOptions())
    unfused.param_groups[0]["fused"] = False
    return [against("AdamW's update: fused", seconds, fused.step, unfused.step)]


def patched(name: str, value: object, call: Call) -> Call:
    """The call, made with another constant of models.layers."""
    kept = getattr(layers, name)

    def run() -> None:
        setattr(layers, name, value)
        try:
            call()
        finally:
            setattr(layers, name, kept)

    return run
