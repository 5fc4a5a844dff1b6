"""Moving averages of the weights, kept only where the fp32 masters are: no communication, 1/N memory."""

from collections.abc import Sequence

import torch

from dist_diffusion.config.averages import ema_name, std_name
from dist_diffusion.config.schema import EmaOptions
from dist_diffusion.engine.layout import Shard, flat
from dist_diffusion.weights.profiles import exponent, lerp_weight


class ShardedEma:
    """e <- e + w (p - e) over the shards that this rank owns, for several averages at once.

    w is 1 - decay, or of a power-function profile after its t-th update 1 - (1 - 1/t)^(gamma + 1).
    """

    def __init__(self, shards: Sequence[Shard], options: EmaOptions) -> None:
        self.shards = list(shards)
        self.rates = {ema_name(i): 1.0 - decay for i, decay in enumerate(options.decays)}
        self.exponents = {std_name(std): exponent(std) for std in options.stds}
        self.values = {name: [flat(s.master).clone() for s in self.shards] for name in (*self.rates, *self.exponents)}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After the optimizer's update number `updates`, from 1 on."""
        masters = [flat(shard.master) for shard in self.shards]
        weights = self.rates | {name: lerp_weight(updates, gamma) for name, gamma in self.exponents.items()}
        for name, values in self.values.items():
            if values:
                torch._foreach_lerp_(values, masters, weights[name])
