"""What a run says of itself: metrics.jsonl, TensorBoard and the console, from sums over all ranks."""

import math
import time

import numpy as np
import torch

from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.distributed.agreement import sum_of
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.metrics import MetricsFile, rewind
from dist_diffusion.observe.tensorboard import TensorBoard
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.runs.layout import RunDir


class Observer:
    """All ranks call it together; rank 0 writes."""

    def __init__(
        self, run: RunDir, recipe: TrainRecipe, group: Group, console: Console, start_step: int, skipped_steps: int
    ) -> None:
        self.recipe, self.group, self.console = recipe, group, console
        batch = recipe.train.global_batch
        self.throughput = Throughput(recipe.train.steps * batch, start_step * batch)
        self.throughput.update(start_step * batch, time.monotonic())
        self.bar = console.progress(recipe.train.steps, start_step)
        self.skipped_steps = skipped_steps
        self.metrics: MetricsFile | None = None
        self.tensorboard: TensorBoard | None = None
        if group.rank == 0:
            moved = rewind(run.metrics, run.stale_metrics, start_step)
            if moved:
                console.say(f"{moved} metrics rows past step {start_step} moved to {run.stale_metrics}")
            self.metrics = MetricsFile(run.metrics)
            self.tensorboard = TensorBoard(run.tensorboard, purge_step=start_step + 1)

    def record(self, step: int, digest: int, result: StepResult, log: dict[str, torch.Tensor]) -> None:
        """After `step` completed steps; `digest` and `log` (means) are this rank's."""
        self.skipped_steps += not result.applied
        self.throughput.update(step * self.recipe.train.global_batch, time.monotonic())
        self.bar.update(step, f"{self.throughput.images_per_s:.1f} img/s")
        if not self._is_due(step):
            return
        row = self._row(step, digest, result, log)
        if self.metrics is not None and self.tensorboard is not None:
            self.metrics.append(row)
            self.tensorboard.scalars({k: v for k, v in row.items() if isinstance(v, int | float)}, step)
            self.console.say(self._line(row))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture into TensorBoard; rank 0 alone."""
        assert self.tensorboard is not None
        self.tensorboard.image(tag, image, step)

    def close(self) -> None:
        """Closes bar and files."""
        self.bar.close()
        if self.metrics is not None and self.tensorboard is not None:
            self.metrics.close()
            self.tensorboard.close()

    def _is_due(self, step: int) -> bool:
        return step == 1 or step == self.recipe.train.steps or step % self.recipe.train.log_every == 0

    def _row(
        self, step: int, digest: int, result: StepResult, log: dict[str, torch.Tensor]
    ) -> dict[str, int | float | str | None]:
        means = torch.stack([result.loss, *log.values()]).double().cpu() / self.group.world_size
        loss, *logged = sum_of(self.group, means).tolist()
        return {
            "step": step,
            "images": step * self.recipe.train.global_batch,
            "loss": finite(loss),
            **{name: finite(value) for name, value in zip(log, logged, strict=True)},
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            "skipped_steps": self.skipped_steps,
            "images_per_s": round(self.throughput.images_per_s, 2),
            "batch_digest": batch_digest(self.group, digest),
        }

    def _line(self, row: dict[str, int | float | str | None]) -> str:
        norm = "non-finite" if row["grad_norm"] is None else f"{row['grad_norm']:.3g}"
        return (
            f"step {row['step']}/{self.recipe.train.steps}  loss {row['loss']:.4f}  grad norm {norm}  "
            f"{self.throughput.images_per_s:.1f} img/s  ETA {human(self.throughput.eta_s)}"
            if row["loss"] is not None
            else f"step {row['step']}/{self.recipe.train.steps}  loss non-finite"
        )


def finite(value: float) -> float | None:
    """JSON has no NaN: a value that is not finite becomes null."""
    return value if math.isfinite(value) else None


def batch_digest(group: Group, digest: int) -> str:
    """The sum of the ranks' digests mod 2**64, 16 hex digits."""
    signed = torch.tensor([digest - 2**64 if digest >= 2**63 else digest], dtype=torch.int64)
    return f"{sum_of(group, signed).item() % 2**64:016x}"
