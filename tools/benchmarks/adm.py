"""The ADM network and its training step against the released code, on the same weights and inputs."""

import torch
from torch import nn

from benchmarks.setting import (
    BATCH,
    IMAGE_SIZE,
    NETWORKS,
    NUM_CLASSES,
    check,
    our_network,
    our_training_step,
    process_group,
    random_weights,
    recipe_of,
    task_batch,
    title,
)
from benchmarks.timing import Row, alternate, compared
from dist_diffusion.distributed.group import Group
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.tasks.build import build as build_task

NETWORK_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
BF16_TOLERANCE = 0.05
"""Of the output's standard deviation."""


def bench_model(seconds: float) -> list[Row]:
    """The forward pass, as sampling runs it; the networks share the time."""
    return [row for options in NETWORKS for row in forward_rows(options, seconds / len(NETWORKS))]


def bench_train(seconds: float) -> list[Row]:
    """The whole step: noise, loss, backward, AdamW, EMA; the peer's through its own TrainLoop."""
    with process_group() as group:
        return [row for options in NETWORKS for row in step_rows(options, seconds / len(NETWORKS), group)]


def forward_rows(options: UNetOptions, seconds: float) -> list[Row]:
    """Of one network, compared and then timed."""
    from benchmarks import peer

    state = random_weights(options)
    theirs, ours = peer.network(options, state).eval(), our_network(options, state).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    t = torch.randint(1000, (BATCH,), generator=generator)
    labels = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)

    @torch.no_grad()
    def forward(network: nn.Module, bf16: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(x, t, labels).float()

    reference, network = forward(theirs, False), title(options)
    check(f"forward, fp32; {network}", forward(ours, False), reference, NETWORK_TOLERANCE)
    bf16_tolerance = BF16_TOLERANCE * reference.std().item()
    check(f"forward, bf16 autocast; {network}", forward(ours, True), reference, bf16_tolerance)
    taken = alternate(
        {
            "peer": lambda: forward(theirs, False),
            "fp32": lambda: forward(ours, False),
            "bf16": lambda: forward(ours, True),
        },
        seconds,
    )
    return [
        compared(f"forward, {precision}; peer, fp32; {network}", BATCH, taken[key], taken["peer"])
        for key, precision in (("bf16", "bf16 autocast"), ("fp32", "fp32"))
    ]


def step_rows(options: UNetOptions, seconds: float, group: Group) -> list[Row]:
    """Of one network, its loss compared and then the steps timed."""
    from benchmarks import peer

    state = random_weights(options)
    check_losses(options, state)
    peer_step = peer.training_step(options, state)

    def peer_step_without_recomputation() -> None:
        with peer.without_recomputation():
            peer_step()

    taken = alternate(
        {
            "peer": peer_step,
            "peer without recomputation": peer_step_without_recomputation,
            "fp32": our_training_step(recipe_of(options, "fp32"), state, group),
            "autocast": our_training_step(recipe_of(options, "autocast"), state, group),
        },
        seconds,
    )
    return [
        compared(f"training step, {ours}; {theirs}, fp32; {title(options)}", BATCH, taken[precision], taken[theirs])
        for theirs in ("peer", "peer without recomputation")
        for precision, ours in (("autocast", "bf16 autocast"), ("fp32", "fp32"))
    ]


def check_losses(options: UNetOptions, state: dict[str, torch.Tensor]) -> None:
    """Both see the same images, timesteps and noise: their losses must agree."""
    from benchmarks import peer

    batch = task_batch(0)
    task = build_task(recipe_of(options, "fp32"), torch.device("cpu"))
    with torch.no_grad():
        loss = task.loss(our_network(options, state), batch).loss
        terms = peer.diffusion().training_losses(
            peer.network(options, state),
            batch.images / 127.5 - 1,
            (batch.draws["timestep"] * 1000).long(),
            model_kwargs={"y": batch.labels},
            noise=batch.draws["noise"],
        )
    reference = terms["loss"].mean()
    check(f"loss, fp32; {title(options)}", loss, reference, LOSS_TOLERANCE * max(1.0, reference.item()))
