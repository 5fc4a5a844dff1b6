"""TensorBoard event files, written locally."""

from collections.abc import Mapping

import numpy as np


class TensorBoard:
    """Writes scalars and images below `folder`. Events from `purge_step` on, left by a killed start, are hidden."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        # Seconds of import that only the rank that writes should pay.
        from torch.utils.tensorboard import SummaryWriter

        # The default of two minutes is what a kill would lose.
        self._writer = SummaryWriter(folder, purge_step=purge_step, flush_secs=10)

    def scalars(self, row: Mapping[str, float], step: int) -> None:
        """One point for each tag."""
        for tag, value in row.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """One uint8 HWC image."""
        self._writer.add_image(tag, image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
