"""What a step does: the draws that it needs and the loss that it makes of a batch. Nothing of how a run runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.draws import Draw


class Forward(Protocol):
    """The network, possibly inside an engine."""

    def __call__(
        self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None, low_res: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(x, model time, labels), and for super-resolution the smaller image, to the output."""


@dataclass(frozen=True)
class TaskBatch:
    """One micro-batch on the device: uint8 images (N, 3, H, W), labels (N,), and the task's draws by name."""

    images: torch.Tensor
    labels: torch.Tensor
    draws: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TaskLoss:
    """The mean loss (a scalar with a graph) and per-sample quantities to log, each (N,), detached."""

    loss: torch.Tensor
    log: dict[str, torch.Tensor]
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
    """uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
