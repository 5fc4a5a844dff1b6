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
        self.metrics = MetricsFile(run.metrics)
        self.tensorboard = TensorBoard(run.tensorboard, start_step + 1, console.say)

    def row(self, row: Mapping[str, Any]) -> None:
        """Of metrics.jsonl; its numbers are in TensorBoard, too."""
        self.metrics.append(row)
        self.tensorboard.scalars({k: v for k, v in row.items() if isinstance(v, int | float)}, row["step"])

    def validation(self, row: Mapping[str, Any], means: Mapping[str, float | None]) -> None:
        """Of validation.jsonl, with the means; these are in TensorBoard, too."""
        file = MetricsFile(self.run.validation)
        file.append({**row, **means})
        file.close()
        self.tensorboard.scalars({f"validation/{k}": v for k, v in means.items() if v is not None}, row["step"])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture into TensorBoard."""
        self.tensorboard.image(tag, image, step)

    def close(self) -> None:
        """Closes the files."""
        self.metrics.close()
        self.tensorboard.close()
