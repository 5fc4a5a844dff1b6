"""TensorBoard event files, written locally."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

RETRY_S = 60.0


class TensorBoard:
    """Writes scalars and images below `folder`. Events from `purge_step` on, left by a killed start, are hidden.

    A disk that is full costs events, which is said aloud, and never the run: later ones go to a new file.
    """

    def __init__(self, folder: str, purge_step: int | None, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._writer = self._new_writer(purge_step)
        self._retry_at = 0.0

    def scalars(self, row: Mapping[str, float], step: int) -> None:
        """One point for each tag."""

        def write(writer: Any) -> None:
            for tag, value in row.items():
                writer.add_scalar(tag, value, step)

        self._attempt(write)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """One uint8 HWC image."""

        def write(writer: Any) -> None:
            writer.add_image(tag, image, step, dataformats="HWC")
            writer.flush()

        self._attempt(write)

    def close(self) -> None:
        """Flushes and closes the event file."""
        if self._writer is not None:
            self._attempt(lambda writer: writer.close())

    def _new_writer(self, purge_step: int | None) -> Any:
        # Seconds of import that only the rank that writes should pay.
        from torch.utils.tensorboard import SummaryWriter

        # The default of two minutes is what a kill would lose.
        return SummaryWriter(self._folder, purge_step=purge_step, flush_secs=10)

    def _attempt(self, write: Callable[[Any], None]) -> None:
        """Its own thread writes: that it failed, the next call tells."""
        if self._writer is None and time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = self._new_writer(None)
            write(self._writer)
        except OSError as error:
            self._say(f"TensorBoard's events are not written, the run goes on: {error}")
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
        self._writer, self._retry_at = None, time.monotonic() + RETRY_S
