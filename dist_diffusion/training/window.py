"""What one rank gathers between two rows. It adds up on the device and never waits for it before a row is due."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dist_diffusion.engine.clock import ForwardClock
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.observe.hardware import take_peak_memory
from dist_diffusion.observe.pace import Interval
from dist_diffusion.tasks.task import Log, Mean


@dataclass(frozen=True)
class Share:
    """What one rank adds to a row."""

    sums: torch.Tensor
    """As `packed`, of the names of the row; on the host."""
    grad_norm_max: float | None
    """The largest finite one; alike in every rank."""
    digest: int
    """Of this rank's samples of the last step."""
    interval: Interval


class Window:
    """The steps since the last row."""

    def __init__(self, clock: ForwardClock, device: torch.device) -> None:
        self.clock, self.device, self.host = clock, device, socket.gethostname()
        self.sums: torch.Tensor | None = None
        self.grad_norm_max: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begins now; what was gathered is forgotten."""
        self.clock.take()
        self._begin(time.perf_counter())

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the wait for a batch."""
        began = time.perf_counter()
        yield
        self.data_wait_s += time.perf_counter() - began

    def add(self, result: StepResult, log: Log) -> None:
        """One step of this rank."""
        terms = packed({"loss_mean": loss_of(result), **log})
        self.sums = terms if self.sums is None else self.sums + terms
        self.steps += 1
        if result.grad_norm is not None:
            self.grad_norm_max = max(result.grad_norm, self.grad_norm_max or 0.0)

    def take(self, digest: int, result: StepResult) -> Share:
        """What there is to say of the window, whose last step is `result`; the next one begins. Waits for the device.

        Its names are loss, loss_mean and those of the log.
        """
        assert self.sums is not None
        sums = torch.cat([packed({"loss": loss_of(result)}), self.sums]).cpu()
        forward_s, now = self.clock.take(), time.perf_counter()
        memory = take_peak_memory(self.device)
        interval = Interval(self.host, self.steps, now - self.began, self.data_wait_s, forward_s, memory)
        share = Share(sums, self.grad_norm_max, digest, interval)
        self._begin(now)
        return share

    def _begin(self, now: float) -> None:
        self.began = now
        self.steps, self.data_wait_s = 0, 0.0
        self.sums = self.grad_norm_max = None


def loss_of(result: StepResult) -> Mean:
    """Every rank has as many samples, so its loss counts once."""
    return Mean.of(result.loss[None])


def packed(log: Log) -> torch.Tensor:
    """Totals and counts, float64 (names, 2), on the log's device."""
    return torch.stack([part for mean in log.values() for part in (mean.total, mean.count)]).view(-1, 2)
