"""The training state in and out of an engine, in the form that checkpoints keep it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist

from dist_diffusion.engine.ema import ShardedEma
from dist_diffusion.engine.layout import Shard, flat, local_shards, parameter_shapes, torch_optimizer
from dist_diffusion.engine.slices import MOMENTS, Slices, state_tensors

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
Sources = Mapping[str, str | None]
"""For each average the name that it has in the commit, or None where the commit does not have it."""


def header(engine: Any, scaler: Any) -> dict[str, Any]:
    """What is the same on all ranks: layout, optimizer step, counters, and fp16's loss scaler or None."""
    state = torch_optimizer(engine).state
    steps = {float(state[shard.master]["step"]) for shard in local_shards(engine)}
    assert len(steps) == 1, f"parameters disagree on the optimizer step: {steps}"
    return {
        "world_size": dist.get_world_size(),
        "zero_stage": engine.zero_optimization_stage(),
        "optimizer_step": steps.pop(),
        "shapes": parameter_shapes(engine),
        "counters": {key: getattr(engine, key) for key in COUNTERS},
        "loss_scaler": None if scaler is None else {key: getattr(scaler, key) for key in SCALER},
    }


@torch.no_grad()
def fill(engine: Any, ema: ShardedEma, folder: str, head: dict[str, Any], sources: Sources) -> None:
    """Fills masters, moments and averages from the slices of a commit of any layout. No collectives.

    An average that the commit does not have begins at the weights.
    """
    rank, optimizer = dist.get_rank(), engine.optimizer
    assert parameter_shapes(engine) == head["shapes"], "the network was compared with the commit's before"
    # This rank's own file first: on an unchanged layout no other is opened.
    slices = Slices(folder, sorted(range(head["world_size"]), key=lambda other: other != rank))
    if hasattr(optimizer, "checkpoint_event_prologue"):
        optimizer.checkpoint_event_prologue()  # stage 3 gives its gathered copies up
    for shard in local_shards(engine):
        state = torch_optimizer(engine).state[shard.master]
        state["step"].fill_(head["optimizer_step"])
        for key, tensor in state_tensors(shard, state).items():
            fill_shard(slices, shard, key, tensor)
    for i, shard in enumerate(ema.shards):
        for name, values in ema.values.items():
            source = sources[name]
            if source is None:
                values[i].copy_(flat(shard.master))
            else:
                fill_shard(slices, shard, source, values[i])


@torch.no_grad()
def refresh(engine: Any, head: dict[str, Any], scaler: Any) -> None:
    """Makes the working weights from the filled masters: all ranks together, once all are filled."""
    optimizer = engine.optimizer
    refresh_working_weights(optimizer)
    if hasattr(optimizer, "checkpoint_event_epilogue"):
        optimizer.checkpoint_event_epilogue()
    for key, value in head["counters"].items():
        setattr(engine, key, value)
    # A commit of another precision, or of an earlier version, has none: it begins anew.
    if scaler is not None and head.get("loss_scaler"):
        for key, value in head["loss_scaler"].items():
            setattr(scaler, key, value)


def fill_shard(slices: Slices, shard: Shard, key: str, tensor: torch.Tensor) -> None:
    """One flat tensor of a shard, segment by segment."""
    for segment in shard.segments:
        slices.fill(tensor[segment.offset : segment.offset + segment.numel], segment.name, key, segment.start)


def make_state(engine: Any, shard: Shard) -> None:
    """Gives the optimizer the shard's Adam state, before the first update."""
    moments = {key: torch.zeros_like(shard.master) for key in MOMENTS}
    step = torch.zeros((), device=shard.master.device)
    torch_optimizer(engine).state[shard.master] = {"step": step, **moments}


def refresh_working_weights(optimizer: Any) -> None:
    """Makes the weights that the forward pass uses from the masters (at stage 0 they are the masters)."""
    if hasattr(optimizer, "fp16_partitioned_groups_flat"):
        pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for low, high in pairs:
            low.data.copy_(high.data)
    elif hasattr(optimizer, "update_lp_params"):
        optimizer.update_lp_params()
