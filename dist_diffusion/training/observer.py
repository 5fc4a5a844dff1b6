"""What a run says of itself: metrics.jsonl, validation.jsonl, TensorBoard and the console, from sums over all ranks."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dist_diffusion.config.schema import TrainRecipe
from dist_diffusion.data.replacement import Replaced
from dist_diffusion.distributed.agreement import gather, on_rank_zero, sum_of
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.clock import ForwardClock
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.models.flops import training_flops
from dist_diffusion.observe import hardware, pace
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.metrics import read
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.tasks.task import Log, Mean
from dist_diffusion.training.window import Share, Window, packed
from dist_diffusion.training.written import Written

HEADLINES = ("loss", "accuracy", "accuracy_top5")
"""What of a validation the console says, where there is one."""
LONG_WAIT = 0.1
"""The share of time waiting for data from which the console tells of it."""


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
        clock: ForwardClock,
    ) -> None:
        self.run, self.recipe, self.group, self.console = run, recipe, group, console
        self.batch, self.start_step = recipe.train.global_batch, start_step
        self.throughput = Throughput(recipe.train.steps * self.batch, start_step * self.batch)
        self.window = Window(clock, group.device)
        self.slow_rank = pace.SlowRankWarning()
        self.began = False
        self.flops = training_flops(recipe.model) * self.batch / group.world_size
        self.peak_tflops = recipe.engine.peak_tflops or hardware.peak_tflops(
            hardware.device_name(group.device), recipe.engine.precision
        )
        self.bar = console.progress(recipe.train.steps, start_step)
        self.skipped_steps = totals.get("skipped_steps", 0)
        self.replaced_samples = totals.get("replaced_samples", 0)
        self.replaced: list[dict[str, int | str]] = []
        self.written = Written(run, start_step, console) if group.rank == 0 else None

    @property
    def totals(self) -> dict[str, int]:
        """What a commit keeps of the counts, alike in every rank."""
        return {"skipped_steps": self.skipped_steps, "replaced_samples": self.replaced_samples}

    def count_replaced(self, replaced: Replaced) -> None:
        """A sample of any rank that another stood for; named in the next row."""
        self.replaced_samples += 1
        self.replaced.append(replaced.to_json())

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Around the wait for a batch. With the first one the run's time begins: what came before was no training."""
        if not self.began:
            self.began = True
            self.throughput.update(self.start_step * self.batch, time.monotonic())
            self.window.restart()
        with self.window.waiting_for_data():
            yield

    def record(self, step: int, digest: int, result: StepResult, log: Log) -> None:
        """After `step` completed steps; `digest` and `log` are of this rank's samples."""
        self.skipped_steps += not result.applied
        self.window.add(result, log)
        self.throughput.update(step * self.batch, time.monotonic())
        self.bar.update(step, f"{self.throughput.images_per_s:.1f} img/s")
        if not self._is_due(step):
            return
        shares = gather(self.group, self.window.take(digest, result))
        intervals = [share.interval for share in shares]
        if self.written is not None:
            row = {
                "step": step,
                "images": step * self.batch,
                **means(["loss", "loss_mean", *log], shares),
                "grad_norm": result.grad_norm,
                "grad_norm_max": shares[0].grad_norm_max,
                **self._state(result),
                **pace.columns(intervals, self.flops, self.peak_tflops),
                "batch_digest": f"{sum(share.digest for share in shares) % 2**64:016x}",
            }
            self.written.row(row)
            self.console.say(self._line(row))
            self._say_who_is_slow(step, pace.spread(intervals))
        self.replaced = []

    def validated(self, step: int, average: str, num_samples: int, means: Mapping[str, float | None]) -> None:
        """What the export of one average of the commit of `step` is worth on held-out samples; alike in every rank."""
        if self.written is None:
            return
        row = {"step": step, "images": step * self.batch, "export": average, "num_samples": num_samples}
        self.written.validation(row, means)
        said = [f"{name} {shown(means[name])}" for name in HEADLINES if name in means]
        self.console.say(f"validation of step {step} ({average}, {num_samples} samples): {'  '.join(said)}")

    def has_validated(self, step: int) -> bool:
        """Whether there is a row of it; the same in every rank."""
        return on_rank_zero(self.group, lambda: any(row["step"] == step for row in read(self.run.validation)))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture into TensorBoard; rank 0 alone."""
        assert self.written is not None
        self.written.image(tag, image, step)

    def close(self) -> None:
        """Closes bar and files."""
        self.bar.close()
        if self.written is not None:
            self.written.close()

    def _is_due(self, step: int) -> bool:
        return step == 1 or step == self.recipe.train.steps or step % self.recipe.train.log_every == 0

    def _state(self, result: StepResult) -> dict[str, Any]:
        return {
            "learning_rate": result.learning_rate,
            **({} if result.loss_scale is None else {"loss_scale": result.loss_scale}),
            **self.totals,
            **({"replaced": self.replaced} if self.replaced else {}),
            "images_per_s": round(self.throughput.images_per_s, 2),
        }

    def _line(self, row: Mapping[str, Any]) -> str:
        norm = "non-finite" if row["grad_norm"] is None else f"{row['grad_norm']:.3g}"
        waited, mfu = row["data_wait_share"], row["mfu"]
        said = [
            f"step {row['step']}/{self.recipe.train.steps}",
            f"mean loss {shown(row['loss_mean'])}",
            f"grad norm {norm}",
            f"{self.throughput.images_per_s:.1f} img/s",
            *([f"data wait {waited:.0%}"] if waited > LONG_WAIT else []),
            *([] if mfu is None else [f"MFU {mfu:.1%}"]),
            f"ETA {human(self.throughput.eta_s)}",
        ]
        return "  ".join(said)

    def _say_who_is_slow(self, step: int, spread: pace.Spread) -> None:
        if self.slow_rank.is_due(spread):
            self.console.say(f"step {step}: {spread}")


def shown(value: float | None) -> str:
    """For a person."""
    return "non-finite" if value is None else f"{value:.4f}"


def over_ranks(group: Group, log: Log) -> dict[str, float | None]:
    """The means over all ranks' samples, by one collective; every rank gives the same names."""
    return _values(log, sum_of(group, packed(log).cpu()))


def means(names: Sequence[str], shares: Sequence[Share]) -> dict[str, float | None]:
    """Over all ranks' samples, of what each share adds to the names."""
    return _values(names, torch.stack([share.sums for share in shares]).sum(dim=0))


def _values(names: Iterable[str], sums: torch.Tensor) -> dict[str, float | None]:
    return {name: Mean(*parts).value for name, parts in zip(names, sums, strict=True)}
