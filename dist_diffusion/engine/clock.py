"""How long a rank's own forward passes take, measured without waiting for the device."""

import time

import torch


class ForwardClock:
    """A context manager around each forward pass: `with clock: ...`. It adds up what they take on their device.

    Forward passes are a rank's own work: the backward pass waits for the other ranks, so only they tell ranks apart.
    (ZeRO stage 3 gathers weights in the forward pass too: there the slow rank's time shows less clearly.)
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = self._began = 0.0
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        """Recorded and not yet read."""
        self._spare: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        if self._on_gpu:
            pair = self._spare.pop() if self._spare else (_event(), _event())
            self._pairs.append(pair)
            pair[0].record()
        else:
            self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        if self._on_gpu:
            self._pairs[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._began

    def take(self) -> float:
        """Seconds since the last call; on a GPU this waits for the last forward pass to be done."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        self._seconds += sum(first.elapsed_time(last) for first, last in self._pairs) / 1000
        self._spare += self._pairs
        self._pairs = []
        taken, self._seconds = self._seconds, 0.0
        return taken


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
