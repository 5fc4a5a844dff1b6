"""What a step logs: means that add up over any split of its samples, by quarter of the process's time."""

import math

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.diffusion.timesteps import WARM, LossHistory
from dist_diffusion.tasks.build import build
from dist_diffusion.tasks.noising import build_process, noised
from dist_diffusion.tasks.task import Log, Mean, Task, TaskBatch, added, by_quartile

CPU = torch.device("cpu")
DATA = DataOptions(image_size=8)
NUM = 12


def batch_of(task: Task, u: torch.Tensor, labels: torch.Tensor) -> TaskBatch:
    """Images with the noise levels that are given."""
    images = torch.randint(0, 256, (len(u), 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = {draw.name: torch.stack([draw.at(0, j) for j in range(len(u))]) for draw in task.draws}
    return TaskBatch(images, labels, {**drawn, "timestep": u})


def part(batch: TaskBatch, rows: slice) -> TaskBatch:
    return TaskBatch(batch.images[rows], batch.labels[rows], {k: v[rows] for k, v in batch.draws.items()})


def values(log: Log) -> dict[str, float | None]:
    return {name: mean.value for name, mean in log.items()}


def sums(log: Log) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: (mean.total, mean.count) for name, mean in log.items()}


def quartiles(options: DiffusionOptions, u: list[float], history: LossHistory | None = None) -> list[int]:
    x0 = torch.zeros(len(u), 3, 2, 2)
    made = noised(build_process(options, CPU), x0, x0, torch.tensor(u, dtype=torch.float64), history)
    assert made.quartile.dtype == torch.int64
    return made.quartile.tolist()


def test_quarters_of_the_timesteps_and_of_continuous_time() -> None:
    edges = [0.0, 0.2499, 0.25, 0.4999, 0.5, 0.7499, 0.75, 0.9999]
    assert quartiles(DiffusionOptions(), edges) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert quartiles(DiffusionOptions(schedule="log_snr"), edges) == [0, 0, 1, 1, 2, 2, 3, 3]
    # T need not be a multiple of four.
    odd = [(t + 0.5) / 21 for t in (5, 6, 10, 11, 15, 16)]
    assert quartiles(DiffusionOptions(num_timesteps=21), odd) == [0, 1, 1, 2, 2, 3]
    # Where the losses decide, the quarter is that of the timestep drawn: here it is nearly always a late one.
    every = torch.arange(100).repeat(WARM)
    late = LossHistory.empty(100).updated(every, torch.where(every < 75, 1e-6, 1.0))
    assert quartiles(DiffusionOptions(num_timesteps=100), [0.1, 0.5, 0.9], late) == [3, 3, 3]


@pytest.mark.parametrize("recipe", [DiffusionRecipe(data=DATA), ClassifierRecipe(data=DATA)])
def test_any_split_into_micro_batches_logs_the_same(recipe: DiffusionRecipe | ClassifierRecipe) -> None:
    """The quarters hold 2, 4, 6 and 0 of the samples: means of means would weigh them by where they lie."""
    task = build(resolve(recipe, num_classes=7), CPU)
    u = torch.tensor([0.1, 0.3, 0.6, 0.3, 0.6, 0.6, 0.3, 0.6, 0.1, 0.6, 0.3, 0.6], dtype=torch.float64)
    batch = batch_of(task, u, torch.arange(NUM) % 7)
    says = torch.randn(NUM, 6, 8, 8, generator=torch.Generator().manual_seed(1))

    def log_of(rows: slice) -> Log:
        output = says[rows] if isinstance(recipe, DiffusionRecipe) else says[rows].flatten(1)[:, :7]
        return task.loss(lambda x, t, y: output, part(batch, rows)).log

    name = "loss" if isinstance(recipe, DiffusionRecipe) else "accuracy_top5"
    whole = log_of(slice(0, NUM))
    assert [int(whole[f"{name}_q{i}"].count) for i in (1, 2, 3, 4)] == [2, 4, 6, 0]
    for size in (1, 3, 4, 6):
        split = added([log_of(slice(i, i + size)) for i in range(0, NUM, size)])
        torch.testing.assert_close(sums(split), sums(whole), rtol=1e-6, atol=0)
    assert whole[f"{name}_q4"].value is None
    total = sum(float(whole[f"{name}_q{i}"].total) for i in (1, 2, 3, 4))
    if name == "loss":
        assert total / NUM == pytest.approx(values(whole)["mse"] + values(whole)["vb"], rel=1e-6)
    else:
        assert total / NUM == pytest.approx(values(whole)["accuracy_top5"])


def test_the_logged_loss_is_of_the_samples_not_of_how_they_were_drawn() -> None:
    """Loss-aware timesteps weigh the loss that trains; the quarters' losses stay comparable between runs."""
    objective = ObjectiveOptions(timesteps="loss_aware")
    recipe = DiffusionRecipe(data=DATA, diffusion=DiffusionOptions(num_timesteps=100), objective=objective)
    task = build(resolve(recipe, num_classes=4), CPU)
    every = torch.arange(100).repeat(WARM)
    task.history = LossHistory.empty(100).updated(every, 1.0 + every)
    u = torch.linspace(0, 0.99, NUM, dtype=torch.float64)
    made = task.loss(lambda x, t, y: torch.ones(NUM, 6, 8, 8), batch_of(task, u, torch.zeros(NUM, dtype=torch.long)))
    assert made.seen is not None
    t, losses = made.seen
    for i in range(4):
        own = losses[(t >= 25 * i) & (t < 25 * (i + 1))]
        assert len(own) and made.log[f"loss_q{i + 1}"].value == pytest.approx(own.double().mean().item(), rel=1e-6)
    assert made.loss.item() != pytest.approx(losses.mean().item(), rel=1e-2)


def test_what_is_not_of_a_quarter_does_not_reach_it() -> None:
    log = by_quartile("loss", torch.tensor([1.0, math.nan, 3.0, math.inf]), torch.tensor([0, 1, 0, 3]))
    assert values(log) == {"loss_q1": 2.0, "loss_q2": None, "loss_q3": None, "loss_q4": None}
    assert [int(mean.count) for mean in log.values()] == [2, 1, 0, 1]
    assert values(added([log, {k: Mean.of(torch.tensor([5.0])) for k in log}]))["loss_q3"] == 5.0


def test_the_label_may_be_among_the_five_most_probable() -> None:
    task = build(resolve(ClassifierRecipe(data=DATA), num_classes=7), CPU)
    # Class 6 is the most probable, 0 the least: labels 6, 2 and 1 are first, fifth and sixth.
    logits = torch.arange(7.0).repeat(4, 1)
    u = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    log = task.loss(lambda x, t, y: logits, batch_of(task, u, torch.tensor([6, 2, 1, 3]))).log
    assert [log["accuracy"].value, log["accuracy_top5"].value] == [0.25, 0.75]
    assert [log[f"accuracy_q{i}"].value for i in (1, 2, 3, 4)] == [1, 0, 0, 0]
    assert [log[f"accuracy_top5_q{i}"].value for i in (1, 2, 3, 4)] == [1, 1, 0, 1]


def test_of_five_classes_the_best_five_say_nothing() -> None:
    task = build(resolve(ClassifierRecipe(data=DATA), num_classes=5), CPU)
    u = torch.zeros(2, dtype=torch.float64)
    log = task.loss(lambda x, t, y: torch.zeros(2, 5), batch_of(task, u, torch.tensor([0, 1]))).log
    assert list(log) == ["accuracy", "accuracy_q1", "accuracy_q2", "accuracy_q3", "accuracy_q4"]
