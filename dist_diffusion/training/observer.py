"""What a run says of itself: metrics.jsonl, validation.jsonl, TensorBoard and the console, from sums over all ranks."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.data.replacement import Replaced
from dist_diffusion.distributed.agreement import on_rank_zero, sum_of
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.metrics import MetricsFile, read, rewind
from dist_diffusion.observe.tensorboard import TensorBoard
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.tasks.task import Log, Mean

HEADLINES = ("loss", "accuracy", "accuracy_top5")
"""What of a validation the console says, where there is one."""


class Observer:
    """All ranks call it together; rank 0 writes."""

    def __init__(
        self,
        run: RunDir,
        recipe: TrainRecipe,
        group: Group,
        console: Console,
        start_step: int,
        totals: Mapping[str, int],
    ) -> None:
        self.run, self.recipe, self.group, self.console = run, recipe, group, console
        batch = recipe.train.global_batch
        self.throughput = Throughput(recipe.train.steps * batch, start_step * batch)
        self.throughput.update(start_step * batch, time.monotonic())
        self.bar = console.progress(recipe.train.steps, start_step)
        self.skipped_steps = totals.get("skipped_steps", 0)
        self.replaced_samples = totals.get("replaced_samples", 0)
        self.replaced: list[dict[str, int | str]] = []
        self.metrics: MetricsFile | None = None
        self.tensorboard: TensorBoard | None = None
        if group.rank == 0:
            self._rewind(run.metrics, run.stale_metrics, start_step)
            self._rewind(run.validation, run.stale_validation, start_step)
            self.metrics = MetricsFile(run.metrics)
            self.tensorboard = TensorBoard(run.tensorboard, purge_step=start_step + 1)

    @property
    def totals(self) -> dict[str, int]:
        """What a commit keeps of the counts, alike in every rank."""
        return {"skipped_steps": self.skipped_steps, "replaced_samples": self.replaced_samples}

    def count_replaced(self, replaced: Replaced) -> None:
        """A sample of any rank that another stood for; named in the next row."""
        self.replaced_samples += 1
        self.replaced.append(replaced.to_json())

    def record(self, step: int, digest: int, result: StepResult, log: Log) -> None:
        """After `step` completed steps; `digest` and `log` are of this rank's samples."""
        self.skipped_steps += not result.applied
        self.throughput.update(step * self.recipe.train.global_batch, time.monotonic())
        self.bar.update(step, f"{self.throughput.images_per_s:.1f} img/s")
        if not self._is_due(step):
            return
        row = self._row(step, digest, result, log)
        self.replaced = []
        if self.metrics is not None and self.tensorboard is not None:
            self.metrics.append(row)
            self.tensorboard.scalars({k: v for k, v in row.items() if isinstance(v, int | float)}, step)
            self.console.say(self._line(row))

    def validated(self, step: int, average: str, num_samples: int, means: Mapping[str, float | None]) -> None:
        """What the export of one average of the commit of `step` is worth on held-out samples; alike in every rank."""
        if self.tensorboard is None:
            return
        images = step * self.recipe.train.global_batch
        file = MetricsFile(self.run.validation)
        file.append({"step": step, "images": images, "export": average, "num_samples": num_samples, **means})
        file.close()
        self.tensorboard.scalars({f"validation/{k}": v for k, v in means.items() if v is not None}, step)
        said = [f"{name} {shown(means[name])}" for name in HEADLINES if name in means]
        self.console.say(f"validation of step {step} ({average}, {num_samples} samples): {'  '.join(said)}")

    def has_validated(self, step: int) -> bool:
        """Whether there is a row of it; the same in every rank."""
        return on_rank_zero(self.group, lambda: any(row["step"] == step for row in read(self.run.validation)))

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

    def _rewind(self, path: str, stale_path: str, step: int) -> None:
        moved = rewind(path, stale_path, step)
        if moved:
            self.console.say(f"{moved} rows of {path} past step {step} moved to {stale_path}")

    def _is_due(self, step: int) -> bool:
        return step == 1 or step == self.recipe.train.steps or step % self.recipe.train.log_every == 0

    def _row(self, step: int, digest: int, result: StepResult, log: Log) -> dict[str, Any]:
        return {
            "step": step,
            "images": step * self.recipe.train.global_batch,
            # Every rank has as many samples, so its loss counts once.
            **over_ranks(self.group, {"loss": Mean.of(result.loss[None]), **log}),
            "grad_norm": result.grad_norm,
            "learning_rate": result.learning_rate,
            **self.totals,
            **({"replaced": self.replaced} if self.replaced else {}),
            "images_per_s": round(self.throughput.images_per_s, 2),
            "batch_digest": batch_digest(self.group, digest),
        }

    def _line(self, row: dict[str, Any]) -> str:
        norm = "non-finite" if row["grad_norm"] is None else f"{row['grad_norm']:.3g}"
        return (
            f"step {row['step']}/{self.recipe.train.steps}  loss {row['loss']:.4f}  grad norm {norm}  "
            f"{self.throughput.images_per_s:.1f} img/s  ETA {human(self.throughput.eta_s)}"
            if row["loss"] is not None
            else f"step {row['step']}/{self.recipe.train.steps}  loss non-finite"
        )


def shown(value: float | None) -> str:
    """For a person."""
    return "non-finite" if value is None else f"{value:.4f}"


def over_ranks(group: Group, log: Log) -> dict[str, float | None]:
    """The means over all ranks' samples, by one collective; every rank gives the same names."""
    mine = torch.stack([torch.stack([mean.total, mean.count]) for mean in log.values()]).cpu()
    return {name: Mean(*parts).value for name, parts in zip(log, sum_of(group, mine), strict=True)}


def batch_digest(group: Group, digest: int) -> str:
    """The sum of the ranks' digests mod 2**64, 16 hex digits."""
    signed = torch.tensor([digest - 2**64 if digest >= 2**63 else digest], dtype=torch.int64)
    return f"{sum_of(group, signed).item() % 2**64:016x}"
