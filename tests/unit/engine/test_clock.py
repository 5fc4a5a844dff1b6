"""The clock of forward passes: what it adds up, and on a GPU that it reads nothing before it is asked to."""

import time
from typing import ClassVar

import pytest
import torch

from dist_diffusion.engine import clock
from dist_diffusion.engine.clock import ForwardClock


def test_on_a_cpu_it_adds_up_what_is_inside_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 10.25, 20.0, 21.0, 30.0, 30.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    forward = ForwardClock(torch.device("cpu"))
    for _ in range(2):
        with forward:
            pass
    assert (forward.take(), forward.take()) == (1.25, 0.0)
    with forward:
        pass
    assert forward.take() == 0.5


class Event:
    """An event of a device whose clock goes on by half a second at each, and which is done once one waits for it."""

    made: ClassVar[list["Event"]] = []
    waits: ClassVar[int] = 0
    now: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self.made.append(self)

    def record(self) -> None:
        Event.now += 500.0
        self.at, self.is_done = Event.now, False

    def synchronize(self) -> None:
        Event.waits += 1
        for event in self.made:
            event.is_done |= event.at <= self.at

    def elapsed_time(self, other: "Event") -> float:
        assert self.is_done and other.is_done
        return other.at - self.at


def test_on_a_gpu_it_waits_when_it_is_read_and_uses_its_events_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_event", Event)
    forward = ForwardClock(torch.device("cuda"))
    for reads, passes in enumerate((3, 2, 3)):
        for _ in range(passes):
            with forward:
                pass
        assert Event.waits == reads
        assert forward.take() == 0.5 * passes
    assert len(Event.made) == 6 and forward.take() == 0.0
