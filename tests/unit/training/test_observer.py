"""What a row says of the steps since the last one."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe, EngineOptions, TrainOptions
from dist_diffusion.distributed.group import Group
from dist_diffusion.engine.clock import ForwardClock
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.models.flops import forward_flops
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.observe.console import Console
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.tasks.task import Log, Mean
from dist_diffusion.training import observer as module
from dist_diffusion.training.observer import Observer

RECIPE = DiffusionRecipe(
    data=DataOptions(image_size=8),
    model=UNetOptions(channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,)),
    train=TrainOptions(steps=100, global_batch=8, log_every=4),
    engine=EngineOptions(peak_tflops=0.5),
)

Make = Callable[..., Observer]


@pytest.fixture
def make(tmp_path: Path, group: Group) -> Make:
    def observer(step: int = 0, **changes: Any) -> Observer:
        recipe = dataclasses.replace(resolve(RECIPE, 3), **changes)
        run, console = RunDir(str(tmp_path)), Console(str(tmp_path / "log"), 0)
        return Observer(run, recipe, group, console, step, {}, ForwardClock(group.device))

    return observer


def record(observer: Observer, step: int, loss: float, log: Log, **changes: Any) -> None:
    """A step with a forward pass."""
    with observer.waiting_for_data():
        pass
    with observer.window.clock:
        pass
    result = StepResult(torch.tensor(loss), 1.0, True, 1e-4, None)
    observer.record(step, 17 * step, dataclasses.replace(result, **changes), log)


def mse(*values: float) -> Log:
    return {"mse": Mean.of(torch.tensor(values))}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_terms_are_means_over_all_samples_since_the_last_row_and_the_loss_is_the_last_steps(
    make: Make, tmp_path: Path
) -> None:
    observer = make()
    for step, (loss, log, norm) in enumerate(
        [
            (4.0, mse(9.0), 5.0),
            (1.0, mse(1.0, 2.0, 3.0), 1.0),
            (2.0, mse(6.0), 3.0),
            (4.0, mse(), None),
            (5.0, mse(8.0), 2.0),
        ],
        start=1,
    ):
        record(observer, step, loss, log, grad_norm=norm, applied=norm is not None)
    observer.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 4]
    first, second = rows(tmp_path)
    assert (first["loss"], first["loss_mean"], first["mse"], first["grad_norm_max"]) == (4.0, 4.0, 9.0, 5.0)
    assert (second["loss"], second["loss_mean"], second["mse"]) == (4.0, pytest.approx(7 / 3), 3.0)
    assert (second["grad_norm"], second["grad_norm_max"], second["skipped_steps"]) == (None, 3.0, 1)
    assert second["batch_digest"] == f"{17 * 4:016x}" and "loss_scale" not in second


def test_a_step_without_a_row_does_not_wait_for_the_device(make: Make) -> None:
    """Of a tensor on the meta device, nothing can be read."""
    observer = make(step=4)
    meta = torch.zeros((), device="meta")
    log = {"mse": Mean(meta.double(), meta.double())}
    for step in (5, 6, 7):
        observer.record(step, 0, StepResult(meta, 1.0, True, 1e-4, None), log)
    with pytest.raises(NotImplementedError):
        observer.record(8, 0, StepResult(meta, 1.0, True, 1e-4, None), log)
    observer.close()


def test_time_and_work(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    observer = make()
    now[0] += 1000.0  # what comes before the first batch
    for step in range(1, 5):
        with observer.waiting_for_data():
            now[0] += 0.5
        with observer.window.clock:
            now[0] += 1.0
        now[0] += 2.5
        observer.record(step, 0, StepResult(torch.tensor(1.0), 1.0, True, 1e-4, 2.0**step), mse(1.0))
    observer.close()
    tflops = 3 * forward_flops(observer.recipe.model) * 8 / 4.0 / 1e12
    for row, scale in zip(rows(tmp_path), (2.0, 16.0), strict=True):
        assert (row["step_s"], row["data_wait_share"], row["forward_s"]) == (4.0, 0.125, 1.0)
        assert row["tflops_per_s"] == pytest.approx(tflops, rel=1e-3) and row["loss_scale"] == scale
        assert row["mfu"] == pytest.approx(tflops / 0.5, rel=1e-3) and row["step_time_spread"] == 1.0
    assert "data wait 12%" in (tmp_path / "log").read_text() and "  MFU " in (tmp_path / "log").read_text()


def test_ranks_are_averaged_by_samples_and_the_slow_one_is_named_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(group: Group, mine: Any) -> list[Any]:
        slow = dataclasses.replace(mine.interval, host="node-7", forward_s=9 * mine.interval.own_s)
        sums = torch.tensor([[3.0, 1.0], [6.0, 1.0], [30.0, 3.0]], dtype=torch.float64)
        return [mine, dataclasses.replace(mine, sums=sums, digest=2**64 - 1, interval=slow)]

    monkeypatch.setattr(module, "gather", gather)
    observer = make(train=TrainOptions(steps=100, global_batch=8, log_every=1))
    for step in range(1, 5):
        record(observer, step, 1.0, mse(2.0))
    observer.close()
    row = rows(tmp_path)[-1]
    assert (row["loss"], row["loss_mean"], row["mse"]) == (2.0, 3.5, 8.0)
    assert row["batch_digest"] == f"{17 * 4 - 1:016x}"
    assert (row["slowest_rank"], row["slowest_host"]) == (1, "node-7") and 1.1 < row["step_time_spread"] < 2
    assert (tmp_path / "log").read_text().count("rank 1 on node-7 is the slowest") == 1
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert {"loss", "loss_mean", "mse", "mfu", "step_time_spread", "peak_memory_gib"} <= set(tags)
    assert not {"slowest_host", "batch_digest"} & set(tags)
