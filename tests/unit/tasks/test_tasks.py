"""Tasks: what is drawn, which labels the network sees, and which outputs the losses train."""

import dataclasses

import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.tasks.build import build
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.task import TaskBatch, to_unit_range

CPU = torch.device("cpu")
DATA = DataOptions(image_size=8)
RECIPE = resolve(DiffusionRecipe(data=DATA, objective=ObjectiveOptions(p_uncond=0.5)), num_classes=4)
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def batch_for(task: object, labels: torch.Tensor) -> TaskBatch:
    drawn = {d.name: torch.stack([d.at(0, j) for j in range(len(labels))]) for d in task.draws}  # type: ignore[attr-defined]
    return TaskBatch(IMAGES[: len(labels)], labels, drawn)


def test_dropped_labels_become_the_last_row_and_no_others() -> None:
    task = build(RECIPE, CPU)
    assert isinstance(task, DiffusionTask)
    batch = batch_for(task, torch.tensor([0, 1, 2, 3, 0, 1]))
    seen = task.labels(batch)
    dropped = batch.draws["dropped_label"]
    assert dropped.any() and not dropped.all()
    assert seen is not None and torch.equal(seen, torch.where(dropped, torch.tensor(4), batch.labels))


def test_an_unconditional_model_sees_no_labels() -> None:
    model = dataclasses.replace(DiffusionRecipe().model, num_classes=0)
    recipe = resolve(DiffusionRecipe(data=DATA, model=model), num_classes=4)
    task = build(recipe, CPU)
    assert isinstance(task, DiffusionTask)
    assert task.labels(batch_for(task, torch.zeros(2, dtype=torch.long))) is None


def test_the_hybrid_loss_is_exact_for_the_true_noise_and_trains_each_half_alone() -> None:
    """L_simple reaches only eps, the bound only the variance (arXiv 2102.09672, section 3.1)."""
    task = build(RECIPE, CPU)
    batch = batch_for(task, torch.tensor([0, 1, 2, 3, 0, 1]))
    fraction = torch.zeros(6, 3, 8, 8, requires_grad=True)
    eps = batch.draws["noise"].clone().requires_grad_()
    made = task.loss(lambda x, t, y: torch.cat([eps, fraction], dim=1), batch)
    assert made.log["mse"].abs().max() == 0
    made.loss.backward()
    assert eps.grad is not None and not eps.grad.any()
    assert fraction.grad is not None and fraction.grad.any()


def test_the_simple_loss_of_a_zero_network_is_the_noises_power() -> None:
    options = DiffusionOptions(variance="fixed_small")
    recipe = DiffusionRecipe(data=DATA, diffusion=options, objective=ObjectiveOptions(loss="simple"))
    task = build(resolve(recipe, num_classes=4), CPU)
    batch = batch_for(task, torch.tensor([0, 1, 2]))
    made = task.loss(lambda x, t, y: torch.zeros_like(x), batch)
    torch.testing.assert_close(made.loss, batch.draws["noise"].pow(2).mean())


def test_the_classifier_task_scores_logits() -> None:
    task = build(resolve(ClassifierRecipe(data=DATA), num_classes=4), CPU)
    labels = torch.tensor([0, 1, 2, 3])
    perfect = 100.0 * torch.eye(4)
    made = task.loss(lambda x, t, y: perfect, batch_for(task, labels))
    assert made.log["accuracy"].tolist() == [1, 1, 1, 1]
    assert made.loss < 1e-6
    wrong = task.loss(lambda x, t, y: perfect.roll(1, 1), batch_for(task, labels))
    assert wrong.log["accuracy"].sum() == 0


def test_pixels_span_the_unit_range() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_v_prediction_is_exact_for_the_true_v() -> None:
    recipe = dataclasses.replace(RECIPE, diffusion=DiffusionOptions(prediction="v"))
    task = build(recipe, CPU)
    assert isinstance(task, DiffusionTask)
    batch = batch_for(task, torch.tensor([0, 1, 2, 3, 0, 1]))
    x0, noise = to_unit_range(batch.images), batch.draws["noise"]

    def exact(x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        alpha = task.process.alpha_bar[t].sqrt().float().view(-1, 1, 1, 1)
        v = alpha * noise - (1 - alpha**2).sqrt() * x0
        return torch.cat([v, torch.zeros_like(v)], dim=1)

    assert task.loss(exact, batch).log["mse"].max() < 1e-10
