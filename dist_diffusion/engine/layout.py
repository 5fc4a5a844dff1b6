"""Where DeepSpeed 0.19 keeps the fp32 master weights that a rank's optimizer updates."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist


@dataclass(frozen=True)
class Segment:
    """`numel` elements of parameter `name`, from its element `start`, at `offset` of a flat tensor."""

    name: str
    start: int
    offset: int
    numel: int


@dataclass(frozen=True)
class Shard:
    """One fp32 tensor that this rank's optimizer updates, and which pieces of parameters it is made of."""

    master: torch.Tensor
    segments: list[Segment]


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A one-dimensional view without a graph."""
    return tensor.detach().view(-1)


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that DeepSpeed wraps (at stage 0 it does not)."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """The full shape of every parameter, also where stage 3 has partitioned it."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def local_shards(engine: Any) -> list[Shard]:
    """What this rank updates. The only function that knows DeepSpeed's layouts."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return _stage_3(engine.optimizer, names)
    return _stages_1_and_2(engine.optimizer, names) if stage else _stage_0(engine.optimizer, names)


@torch.no_grad()
def clear_padding(shard: Shard) -> None:
    """Zeros where no parameter lies: at stage 3 that is memory which nobody has written to, and it is saved, too."""
    master, end = flat(shard.master), 0
    for segment in sorted(shard.segments, key=lambda segment: segment.offset):
        master[end : segment.offset].zero_()
        end = max(end, segment.offset + segment.numel)
    master[end:].zero_()


def owned_shards(engine: Any) -> list[Shard]:
    """What this rank averages and writes: all it updates, or at stage 0 its share of the replicas."""
    shards = local_shards(engine)
    if engine.zero_optimization_stage():
        return shards
    shares: list[list[Shard]] = [[] for _ in range(dist.get_world_size())]
    loads = [0] * len(shares)
    # Weights and biases alternate, so dealing them out in turn would give all weights to one of two ranks.
    for shard in sorted(shards, key=lambda shard: shard.master.numel(), reverse=True):
        rank = loads.index(min(loads))
        shares[rank].append(shard)
        loads[rank] += shard.master.numel()
    return shares[dist.get_rank()]


def _stage_3(optimizer: Any, names: dict[torch.Tensor, str]) -> list[Shard]:
    """Each parameter is split evenly over the ranks and padded."""
    rank, shards = dist.get_rank(optimizer.dp_process_group), []
    groups = zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    for parameters, master in groups:
        segments, offset = [], 0
        for p in parameters:
            size = p.partition_numel()
            owned = max(0, min(size, p.ds_numel - rank * size))
            segments.append(Segment(names[p], rank * size, offset, owned))
            offset += size
        shards.append(Shard(master, segments))
    return shards


def _stages_1_and_2(optimizer: Any, names: dict[torch.Tensor, str]) -> list[Shard]:
    """Each group's parameters are laid end to end, then cut into equal parts."""
    assert not optimizer.round_robin_gradients, "DeepSpeed's own mapping is wrong with round_robin_gradients"
    shards = []
    for parameters, base in zip(optimizer.bit16_groups, optimizer.optimizer.param_groups, strict=True):
        mapped = [(names[p], p._hp_mapping) for p in parameters if p._hp_mapping is not None]
        segments = [
            Segment(name, m.lp_fragment_address.start, m.hp_fragment_address.start, m.lp_fragment_address.numel)
            for name, m in mapped
        ]
        shards.append(Shard(base["params"][0], segments))
    return shards


def _stage_0(optimizer: Any, names: dict[torch.Tensor, str]) -> list[Shard]:
    """Every rank holds every parameter."""
    return [Shard(p, [Segment(names[p], 0, 0, p.numel())]) for group in optimizer.param_groups for p in group["params"]]
