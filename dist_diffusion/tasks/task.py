"""What a step does: the draws that it needs and the loss that it makes of a batch. Nothing of how a run runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from dist_diffusion.draws import Draw

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""The network, possibly inside an engine: (x, model time, labels) to its output."""


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


class Task(Protocol):
    """A training task."""

    @property
    def draws(self) -> tuple[Draw, ...]:
        """What is drawn for each sample."""

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """The loss of one micro-batch."""


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
