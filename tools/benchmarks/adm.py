"""The ADM network and its training step against the released code, on the same weights and inputs."""

import torch
from torch import nn

from benchmarks.setting import (
    BATCH,
    IMAGE_SIZE,
    NUM_CLASSES,
    check,
    one_process,
    our_network,
    our_training_step,
    random_weights,
    recipe_of,
    task_batch,
)
from benchmarks.timing import Row, alternate, compared
from dist_diffusion.models.build import build
from dist_diffusion.tasks.build import build as build_task

NETWORK_TOLERANCE = 1e-4
LOSS_TOLERANCE = 1e-5
BF16_TOLERANCE = 0.05
"""Of the output's standard deviation."""


def fresh_weights() -> dict[str, torch.Tensor]:
    """The weights that all of a benchmark's networks have."""
    return random_weights(build(recipe_of("fp32").model))


def bench_model(seconds: float) -> list[Row]:
    """The forward pass, as sampling runs it."""
    from benchmarks import peer

    state = fresh_weights()
    theirs, ours = peer.network(state).eval(), our_network(state).eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    t = torch.randint(1000, (BATCH,), generator=generator)
    labels = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)

    @torch.no_grad()
    def forward(network: nn.Module, bf16: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(x, t, labels).float()

    reference = forward(theirs, False)
    check("forward, fp32", forward(ours, False), reference, NETWORK_TOLERANCE)
    check("forward, bf16 autocast", forward(ours, True), reference, BF16_TOLERANCE * reference.std().item())
    taken = alternate(
        {
            "peer": lambda: forward(theirs, False),
            "fp32": lambda: forward(ours, False),
            "bf16": lambda: forward(ours, True),
        },
        seconds,
    )
    return [
        compared("forward, fp32; peer fp32", BATCH, taken["fp32"], taken["peer"]),
        compared("forward, bf16 autocast; peer fp32", BATCH, taken["bf16"], taken["peer"]),
    ]


def bench_train(seconds: float) -> list[Row]:
    """The whole step: noise, loss, backward, AdamW, EMA; the peer's through its own TrainLoop."""
    from benchmarks import peer

    with one_process() as group:
        state = fresh_weights()
        check_losses(state)
        peer_step = peer.training_step(state)

        def peer_step_without_recomputation() -> None:
            with peer.without_recomputation():
                peer_step()

        taken = alternate(
            {
                "peer": peer_step,
                "peer without recomputation": peer_step_without_recomputation,
                "fp32": our_training_step(recipe_of("fp32"), state, group),
                "autocast": our_training_step(recipe_of("autocast"), state, group),
            },
            seconds,
        )
    return [
        compared(f"training step, {ours}; {theirs}, fp32", BATCH, taken[precision], taken[theirs])
        for theirs in ("peer", "peer without recomputation")
        for precision, ours in (("fp32", "fp32"), ("autocast", "bf16 autocast"))
    ]


def check_losses(state: dict[str, torch.Tensor]) -> None:
    """Both see the same images, timesteps and noise: their losses must agree."""
    from benchmarks import peer

    batch = task_batch(0)
    task = build_task(recipe_of("fp32"), torch.device("cpu"))
    with torch.no_grad():
        loss = task.loss(our_network(state), batch).loss
        terms = peer.diffusion().training_losses(
            peer.network(state),
            batch.images / 127.5 - 1,
            (batch.draws["timestep"] * 1000).long(),
            model_kwargs={"y": batch.labels},
            noise=batch.draws["noise"],
        )
    reference = terms["loss"].mean()
    check("loss, fp32", loss, reference, LOSS_TOLERANCE * max(1.0, reference.item()))
