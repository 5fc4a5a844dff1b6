"""Signals that ask for a stop. They only set a flag: ranks agree at a step boundary what to do."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Whether a stop was asked for, and by which signal first."""

    def __init__(self) -> None:
        self.name: str | None = None

    def install(self) -> None:
        """Handles USR2, TERM and INT from now on; a second INT interrupts at once. From the main thread only."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._set)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.name is not None

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
