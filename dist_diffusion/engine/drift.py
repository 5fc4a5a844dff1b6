"""Whether the ranks' replicas of the weights are still one: a broken device changes numbers without a word."""

import socket
from collections import Counter

import torch

from dist_diffusion.distributed.agreement import gather
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import DriftError, alike

SHARDED_STAGE = 3
"""Where no rank holds all weights, there is nothing to compare."""


def check_replicas(engine: TrainingEngine, group: Group, step: int) -> None:
    """DriftError, in every rank, names the ranks whose weights are not those of most, and a parameter."""
    if group.world_size == 1 or engine.recipe.engine.zero_stage == SHARDED_STAGE:
        return
    module = engine.deepspeed.module
    found = gather(group, (checksums(module), str(group.device), socket.gethostname()))
    names = [name for name, _ in module.named_parameters()]
    message = differences([sums for sums, _, _ in found], [f"{device} of {host}" for _, device, host in found], names)
    if message is not None:
        with alike():
            raise DriftError(
                f"after step {step} the ranks' weights differ: {message}. Nothing of it was committed: run the same "
                "command again, without that device if it happens there once more"
            )


@torch.no_grad()
def checksums(module: torch.nn.Module) -> list[int]:
    """Of each parameter the sum of its bit patterns as integers, mod 2**64."""
    integers = {2: torch.int16, 4: torch.int32}
    sums = [p.detach().view(integers[p.element_size()]).sum(dtype=torch.int64) for p in module.parameters()]
    return torch.stack(sums).tolist()


def differences(sums: list[list[int]], places: list[str], names: list[str]) -> str | None:
    """Which ranks disagree with the most common checksums, and where first; None where all agree."""
    common = Counter(map(tuple, sums)).most_common(1)[0][0]
    others = [rank for rank, mine in enumerate(sums) if tuple(mine) != common]
    if not others:
        return None
    first = next(i for i, (mine, usual) in enumerate(zip(sums[others[0]], common, strict=True)) if mine != usual)
    listed = ", ".join(f"rank {rank} ({places[rank]})" for rank in others)
    # Of two ranks, say, the one named is not more likely to be wrong.
    either = "" if 2 * len(others) < len(sums) else " (without a majority: it may be the other side that is wrong)"
    return f"{listed} from the other {len(sums) - len(others)}, first in {names[first]}{either}"
