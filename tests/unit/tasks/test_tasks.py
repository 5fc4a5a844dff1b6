"""Tasks: what is drawn, which labels the network sees, and which outputs the losses train."""

import dataclasses
import math

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe, SuperResolutionRecipe
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.diffusion.parameterizations import target
from dist_diffusion.diffusion.timesteps import WARM, LossHistory
from dist_diffusion.draws import Stratified
from dist_diffusion.models.options import SuperResolutionOptions
from dist_diffusion.tasks.build import build
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.noising import noised
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
    assert made.log["mse"].value == 0
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
    assert (made.log["accuracy"].value, made.log["accuracy"].count) == (1, 4)
    assert made.loss < 1e-6
    wrong = task.loss(lambda x, t, y: perfect.roll(1, 1), batch_for(task, labels))
    assert wrong.log["accuracy"].value == 0


def test_pixels_span_the_unit_range() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def diffusion_task(diffusion: DiffusionOptions, objective: ObjectiveOptions) -> DiffusionTask:
    task = build(resolve(DiffusionRecipe(data=DATA, diffusion=diffusion, objective=objective), num_classes=4), CPU)
    assert isinstance(task, DiffusionTask)
    return task


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [(name, "cosine") for name in ("eps", "x0", "mean", "v", "edm")]
    + [(name, "log_snr") for name in ("eps", "x0", "v", "edm")],
)
def test_the_squared_error_of_the_true_output_is_zero(prediction: str, schedule: str) -> None:
    options = DiffusionOptions(schedule=schedule, prediction=prediction, variance="fixed_small")  # type: ignore[arg-type]
    task = diffusion_task(options, ObjectiveOptions(loss="simple"))
    batch = batch_for(task, LABELS)
    x0, noise = to_unit_range(batch.images), batch.draws["noise"]
    level = noised(task.process, x0, noise, batch.draws["timestep"]).level
    made = task.loss(lambda x, t, y: target(options, x0, noise, level), batch)
    assert made.log["mse"].total < 1e-10
    assert task.loss(lambda x, t, y: torch.zeros_like(x), batch).log["mse"].total > 1e-6
    # Where there are no timesteps there is nothing to tell a history.
    assert (made.seen is None) == (schedule == "log_snr")


EDM = DiffusionOptions(schedule="log_snr", prediction="edm", sigma_data=0.58, variance="fixed_small")
LOG_NORMAL = ObjectiveOptions(loss="simple", timesteps="log_normal", log_sigma_mean=-0.4, log_sigma_std=0.9)


UPSAMPLER = SuperResolutionOptions(low_res_size=4)


@pytest.mark.parametrize(
    "recipe",
    [
        DiffusionRecipe(data=DATA, diffusion=EDM, objective=LOG_NORMAL),
        SuperResolutionRecipe(data=DATA, diffusion=EDM, objective=LOG_NORMAL, model=UPSAMPLER),
    ],
    ids=["diffusion", "super_resolution"],
)
def test_edms_training_is_the_papers(recipe: DiffusionRecipe) -> None:
    """arXiv 2206.00364, table 1 and equation 8: levels, what the network sees, and the loss of what it says."""
    task = build(resolve(recipe, num_classes=4), CPU)
    assert isinstance(task, DiffusionTask)
    batch, seen = batch_for(task, LABELS), []

    def forward(x: torch.Tensor, time: torch.Tensor, labels: object, low_res: object = None) -> torch.Tensor:
        seen.append((x, time))
        return torch.zeros_like(x)

    made = task.loss(forward, batch)
    quantile = torch.distributions.Normal(-0.4, 0.9).icdf(batch.draws["timestep"])
    sigma = quantile.exp().float().view(-1, 1, 1, 1)
    torch.testing.assert_close((math.pi / 2 * seen[0][1] / 1000).tan(), sigma.flatten(), rtol=1e-4, atol=0)
    x0 = to_unit_range(batch.images)
    x, total = x0 + sigma * batch.draws["noise"], sigma**2 + 0.58**2
    torch.testing.assert_close(seen[0][0], x / total.sqrt(), rtol=1e-4, atol=1e-5)
    # Of a network that says nothing, D is c_skip x; sigma_data is that of uniform pixels, so the loss is about 1.
    per_sample = (total / (sigma * 0.58) ** 2 * (0.58**2 / total * x - x0) ** 2).flatten(1).mean(dim=1)
    torch.testing.assert_close(terms_of(task, batch, torch.zeros_like(x0))["mse"], per_sample, rtol=1e-3, atol=0)
    torch.testing.assert_close(made.loss, per_sample.mean(), rtol=1e-3, atol=0)
    assert made.loss.item() == pytest.approx(1.0, abs=0.15)


def terms_of(task: DiffusionTask, batch: TaskBatch, output: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss's terms, each (N,)."""
    x0, noise = to_unit_range(batch.images), batch.draws["noise"]
    return task.terms(output, x0, noise, noised(task.process, x0, noise, task.level_draws(batch), task.history))


def outputs(batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A wrong noise and a variance, as leaves."""
    eps = (batch.draws["noise"] + 0.3).requires_grad_()
    return eps, torch.full((6, 3, 8, 8), 0.2, requires_grad=True)


def test_the_bound_reaches_the_mean_in_kl_alone() -> None:
    """hybrid and rescaled detach it (arXiv 2102.09672, section 3.1): their eps learns by the squared error."""
    gradients = {}
    for loss in ("hybrid", "rescaled", "kl"):
        task = diffusion_task(DiffusionOptions(num_timesteps=500), ObjectiveOptions(loss=loss))  # type: ignore[arg-type]
        batch = batch_for(task, LABELS)
        eps, variance = outputs(batch)
        made = task.loss(lambda x, t, y, eps=eps, variance=variance: torch.cat([eps, variance], dim=1), batch)
        made.loss.backward()
        assert variance.grad is not None and variance.grad.any()
        gradients[loss] = eps.grad
    squared = torch.full((6, 3, 8, 8), 2 * 0.3 / (6 * 3 * 8 * 8))
    torch.testing.assert_close(gradients["hybrid"], squared)
    torch.testing.assert_close(gradients["rescaled"], squared)
    assert gradients["kl"] is not None and (gradients["kl"] - squared).abs().max() > 1e-3


def test_the_losses_weigh_the_same_bound_differently() -> None:
    made, terms = {}, {}
    for loss in ("simple", "hybrid", "rescaled", "kl"):
        task = diffusion_task(DiffusionOptions(num_timesteps=500), ObjectiveOptions(loss=loss))  # type: ignore[arg-type]
        batch = batch_for(task, LABELS)
        both = torch.cat(outputs(batch), dim=1).detach()
        made[loss], terms[loss] = task.loss(lambda x, t, y, both=both: both, batch), terms_of(task, batch, both)
        means = {name: term.double().mean().item() for name, term in terms[loss].items()}
        assert {name: made[loss].log[name].value for name in means} == means
    bound = terms["hybrid"]["vb"]
    torch.testing.assert_close(terms["rescaled"]["vb"], 0.5 * bound)
    torch.testing.assert_close(terms["kl"]["vb"], 500 * bound)
    assert "mse" not in made["kl"].log and "vb" not in made["simple"].log
    torch.testing.assert_close(made["hybrid"].loss, (terms["hybrid"]["mse"] + bound).mean())
    torch.testing.assert_close(terms["simple"]["mse"], torch.full((6,), 0.09))


def test_a_weighting_weighs_the_squared_error_alone() -> None:
    made = {}
    for weighting in ("uniform", "min_snr", "edm"):
        task = diffusion_task(DiffusionOptions(), ObjectiveOptions(weighting=weighting))  # type: ignore[arg-type]
        batch = batch_for(task, LABELS)
        made[weighting] = terms_of(task, batch, torch.cat(outputs(batch), dim=1).detach())
    for weighting in ("min_snr", "edm"):
        assert torch.equal(made[weighting]["vb"], made["uniform"]["vb"])
    snr = task.process.alpha_bar / (1 - task.process.alpha_bar)  # type: ignore[union-attr]
    t = (batch.draws["timestep"] * 1000).long()
    weight = (snr.clamp(max=5) / snr)[t].float()
    torch.testing.assert_close(made["min_snr"]["mse"], weight * made["uniform"]["mse"])


def test_loss_aware_timesteps_are_drawn_by_the_history_and_weighed_against_it() -> None:
    task = diffusion_task(DiffusionOptions(num_timesteps=50), ObjectiveOptions(timesteps="loss_aware"))
    assert task.history is not None and not task.history.counts.any()
    every = torch.arange(50).repeat(WARM)
    task.history = LossHistory.empty(50).updated(every, (1.0 + every) ** 2)
    batch = batch_for(task, LABELS)
    t, weight = task.history.draw(batch.draws["timestep"])
    assert (t != (50 * batch.draws["timestep"]).long()).any() and weight.std() > 0.1
    both, told = torch.cat(outputs(batch), dim=1).detach(), []

    def forward(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        told.append(time)
        return both

    made = task.loss(forward, batch)
    assert torch.equal(told[0], t)
    assert made.seen is not None and torch.equal(made.seen[0], t)
    per_sample = sum(terms_of(task, batch, both).values())
    torch.testing.assert_close(made.seen[1], per_sample)
    torch.testing.assert_close(made.loss, (weight * per_sample).mean())


def test_stratified_timesteps_spread_over_a_global_batch() -> None:
    recipe = DiffusionRecipe(data=DATA, objective=ObjectiveOptions(timesteps="stratified"))
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, global_batch=6))
    task = build(resolve(recipe, num_classes=4), CPU)
    assert task.draws[0] == Stratified("timestep", 6) and task.history is None
    batch, times = batch_for(task, LABELS), []

    def forward(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        times.append(time)
        return torch.zeros(6, 6, 8, 8)

    task.loss(forward, batch)
    assert sorted((times[0] * 6 // 1000).tolist()) == [0, 1, 2, 3, 4, 5]
