"""Exponential moving averages of the weights, kept only where the fp32 masters are: no communication, 1/N memory."""

from collections.abc import Sequence

import torch

from dist_diffusion.engine.layout import Shard, flat


def ema_key(i: int) -> str:
    """The name of the i-th average."""
    return f"ema_{i}"


class ShardedEma:
    """e <- d e + (1 - d) p over the shards that this rank owns, for several decays d at once."""

    def __init__(self, shards: Sequence[Shard], decays: Sequence[float]) -> None:
        self.decays = tuple(decays)
        self.shards = list(shards)
        self.values = {ema_key(i): [flat(s.master).clone() for s in self.shards] for i in range(len(self.decays))}

    @torch.no_grad()
    def update(self) -> None:
        """One step, after the optimizer's."""
        masters = [flat(shard.master) for shard in self.shards]
        for decay, values in zip(self.decays, self.values.values(), strict=True):
            if values:
                torch._foreach_lerp_(values, masters, 1.0 - decay)
