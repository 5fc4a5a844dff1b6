"""Training of the denoising network (arXiv 2105.05233), with label dropout (arXiv 2207.12598)."""

import torch

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion import losses
from dist_diffusion.diffusion.denoiser import split
from dist_diffusion.diffusion.gaussians import Process
from dist_diffusion.diffusion.log_snr import LogSnrProcess
from dist_diffusion.diffusion.parameterizations import network_input, target, x0_from
from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.draws import Bernoulli, Draw, Normal, Stratified, Uniform
from dist_diffusion.tasks.noising import AnyProcess, Noised, noised
from dist_diffusion.tasks.task import Forward, Mean, TaskBatch, TaskLoss, by_quartile, to_unit_range


class DiffusionTask:
    """Predict the noise, or what stands for it, and where it is learned the reverse step's variance."""

    def __init__(self, recipe: DiffusionRecipe, process: AnyProcess) -> None:
        model, objective = recipe.model, recipe.objective
        assert model.image_size is not None and model.num_classes is not None
        self.process, self.options, self.objective = process, recipe.diffusion, objective
        self.num_classes = model.num_classes
        self.history: LossHistory | None = None
        if objective.timesteps == "loss_aware":
            self.history = LossHistory.empty(recipe.diffusion.num_timesteps)
        stratified = objective.timesteps == "stratified"
        shape = (model.in_channels, model.image_size, model.image_size)
        self.draws: tuple[Draw, ...] = (
            Stratified("timestep", recipe.train.global_batch) if stratified else Uniform("timestep"),
            Normal("noise", shape),
            Bernoulli("dropped_label", objective.p_uncond),
        )

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """The objective's loss, each sample weighted against the way its timestep was drawn."""
        x0, noise = to_unit_range(batch.images), batch.draws["noise"]
        made = noised(self.process, x0, noise, self.level_draws(batch), self.history)
        output = self.predict(forward, made, x0, self.labels(batch)).float()
        terms = self.terms(output, x0, noise, made)
        per_sample = torch.stack(list(terms.values())).sum(dim=0)
        seen = None if made.t is None else (made.t, per_sample.detach())
        log = {name: Mean.of(term) for name, term in terms.items()} | by_quartile("loss", per_sample, made.quartile)
        return TaskLoss((per_sample * made.weight).mean(), log, seen)

    def level_draws(self, batch: TaskBatch) -> torch.Tensor:
        """The u of each sample's noise level, (N,): as drawn, or spread as timesteps log_normal says."""
        u = batch.draws["timestep"]
        if self.objective.timesteps != "log_normal":
            return u
        assert isinstance(self.process, LogSnrProcess)
        return self.process.log_normal(u, self.objective.log_sigma_mean, self.objective.log_sigma_std)

    def predict(self, forward: Forward, made: Noised, x0: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's output for a noised batch; `x0` is there for tasks that condition on it."""
        return forward(network_input(self.options, made.x_t, made.level), made.time, labels)

    def terms(
        self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, made: Noised
    ) -> dict[str, torch.Tensor]:
        """The loss's terms, each (N,): mse and vb.

        The bound of `hybrid`, in bits per dimension, has weight 1 as in the released code: the paper's 0.001
        (arXiv 2102.09672, equation 16) times T = 1000 terms.
        """
        predicted, variance = split(output, self.options)
        if self.objective.loss == "kl":
            return {"vb": self.options.num_timesteps * self.bound(predicted, variance, x0, made)}
        wanted = target(self.options, x0, noise, made.level)
        weight = losses.snr_weight(self.objective, self.options, made.level)
        terms = {"mse": weight * losses.simple(predicted, wanted)}
        if self.objective.loss != "simple":
            scale = self.options.num_timesteps / 1000 if self.objective.loss == "rescaled" else 1.0
            terms["vb"] = scale * self.bound(predicted.detach(), variance, x0, made)
        return terms

    def bound(
        self, predicted: torch.Tensor, variance: torch.Tensor | None, x0: torch.Tensor, made: Noised
    ) -> torch.Tensor:
        """The variational bound's terms, in bits per dimension, (N,)."""
        assert isinstance(self.process, Process) and made.t is not None
        predicted_x0 = x0_from(self.options, predicted, made.x_t, made.level)
        log_variance = losses.step_log_variance(self.process, self.options, variance, made.t, x0)
        return losses.variational_bound(self.process, x0, predicted_x0, log_variance, made.x_t, made.t)

    def labels(self, batch: TaskBatch) -> torch.Tensor | None:
        """The labels, dropped ones replaced by the null label, which is the last row; None if unconditional."""
        if not self.num_classes:
            return None
        return torch.where(batch.draws["dropped_label"], self.num_classes, batch.labels)
