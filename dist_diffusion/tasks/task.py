"""What a step does: the draws that it needs and the loss that it makes of a batch. Nothing of how a run runs."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.draws import Draw

NUM_QUARTILES = 4
"""Equal parts of the process's time, by which quantities are logged."""


class Forward(Protocol):
    """The network, possibly inside an engine."""

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None, low_res: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(x, model time, labels), and for super-resolution the smaller image, to the output."""


@dataclass(frozen=True)
class TaskBatch:
    """One micro-batch on the device: images, labels (N,), and the task's draws by name.

    Images are uint8 (N, 3, H, W), or float32 latents (N, C, H, W).
    """

    images: torch.Tensor
    labels: torch.Tensor
    draws: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Mean:
    """A quantity's sum over samples and their number, float64 scalars: means of parts add up to the mean of the whole.

    So a quantity of some of the samples is right however these are spread over micro-batches and ranks.
    """

    total: torch.Tensor
    count: torch.Tensor

    @staticmethod
    def of(values: torch.Tensor, mask: torch.Tensor | None = None) -> "Mean":
        """Of per-sample values (N,), or of those where the mask (N,) is true; detached, on their device."""
        chosen = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        # Not by a product: what is left out may be infinite.
        return Mean(values.detach().double().where(chosen, 0.0).sum(), chosen.double().sum())

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float | None:
        """The mean, waiting for the device; None over no samples, or where it is not finite: JSON has no NaN."""
        value = (self.total / self.count).item()
        return value if math.isfinite(value) else None


Log = dict[str, Mean]
"""What a step says of its samples, by name."""


def added(logs: Sequence[Log]) -> Log:
    """The logs of parts as the log of the whole; of no parts none."""
    return {name: functools.reduce(operator.add, (log[name] for log in logs)) for name in (logs[0] if logs else ())}


def by_quartile(name: str, values: torch.Tensor, quartile: torch.Tensor) -> Log:
    """Per-sample values (N,) by the quartile (N,) of their noise level: name_q1, the cleanest, to name_q4."""
    return {f"{name}_q{i + 1}": Mean.of(values, quartile == i) for i in range(NUM_QUARTILES)}


@dataclass(frozen=True)
class TaskLoss:
    """The mean loss (a scalar with a graph) and what to log."""

    loss: torch.Tensor
    log: Log
    seen: tuple[torch.Tensor, torch.Tensor] | None = None
    """Timesteps and losses for the task's history, each (N,)."""


class Task(Protocol):
    """A training task."""

    history: LossHistory | None
    """Losses by timestep, where these decide which timesteps are drawn."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What is drawn for each sample."""

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """The loss of one micro-batch."""


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as contiguous float32 in [-1, 1]; latents, float32 already, as they are."""
    if images.is_floating_point():
        return images
    return images.contiguous().float() / 127.5 - 1
