"""The files in which a run says what it did; rank 0's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dist_diffusion.observe.console import Console
from dist_diffusion.observe.metrics import MetricsFile, rewind
from dist_diffusion.observe.tensorboard import TensorBoard
from dist_diffusion.runs.layout import RunDir


class Written:
    """metrics.jsonl, validation.jsonl and TensorBoard, from `start_step` on: rows of later steps are set aside."""

    def __init__(self, run: RunDir, start_step: int, console: Console) -> None:
        self.run = run
        for path, stale_path in ((run.metrics, run.stale_metrics), (run.validation, run.stale_validation)):
            moved = rewind(path, stale_path, start_step)
            if moved:
                console.say(f"{moved} rows of {path} past step {start_step} moved to {stale_path}")
        self.console = console
        self.metrics = MetricsFile(run.metrics, console.say)
        self.validated: MetricsFile | None = None
        self.tensorboard = TensorBoard(run.tensorboard, start_step + 1, console.say)

    def row(self, row: Mapping[str, Any]) -> None:
        """Of metrics.jsonl; its numbers are in TensorBoard, too."""
        self.metrics.append(row)
        self.tensorboard.scalars({k: v for k, v in row.items() if isinstance(v, int | float)}, row["step"])

    def validation(self, row: Mapping[str, Any], means: Mapping[str, float | None]) -> None:
        """Of validation.jsonl, with the means; these are in TensorBoard, too."""
        if self.validated is None:
            self.validated = MetricsFile(self.run.validation, self.console.say)
        self.validated.append({**row, **means})
        self.tensorboard.scalars({f"validation/{k}": v for k, v in means.items() if v is not None}, row["step"])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture into TensorBoard."""
        self.tensorboard.image(tag, image, step)

    def close(self) -> None:
        """Closes the files."""
        self.metrics.close()
        if self.validated is not None:
            self.validated.close()
        self.tensorboard.close()
