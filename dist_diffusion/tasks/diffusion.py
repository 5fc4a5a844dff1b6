"""Training of the denoising network (arXiv 2105.05233), with label dropout (arXiv 2207.12598)."""

import torch

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion import losses
from dist_diffusion.diffusion.gaussians import Process, q_sample, signal_and_noise
from dist_diffusion.diffusion.parameterizations import eps_from_v, velocity
from dist_diffusion.diffusion.timesteps import uniform_timesteps
from dist_diffusion.draws import Bernoulli, Draw, Normal, Uniform
from dist_diffusion.tasks.task import Forward, TaskBatch, TaskLoss, to_unit_range


class DiffusionTask:
    """Predict the noise, and with the hybrid loss the reverse step's variance, of a class-conditional model."""

    def __init__(self, recipe: DiffusionRecipe, process: Process) -> None:
        model = recipe.model
        assert model.image_size is not None and model.num_classes is not None
        self.process = process
        self.predicts_v = recipe.diffusion.prediction == "v"
        self.hybrid = recipe.objective.loss == "hybrid"
        self.num_classes = model.num_classes
        shape = (model.in_channels, model.image_size, model.image_size)
        self.draws: tuple[Draw, ...] = (
            Uniform("timestep"),
            Normal("noise", shape),
            Bernoulli("dropped_label", recipe.objective.p_uncond),
        )

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """L_simple, plus with `hybrid` the variational bound on the variance alone (arXiv 2102.09672, equation 16).

        The bound, in bits per dimension, has weight 1 as in the released code: the paper's 0.001 times T = 1000 terms.
        """
        x0, noise = to_unit_range(batch.images), batch.draws["noise"]
        t = uniform_timesteps(batch.draws["timestep"], self.process.num_timesteps)
        x_t = q_sample(self.process, x0, t, noise)
        output = forward(x_t, t, self.labels(batch)).float()
        predicted = output[:, : x0.shape[1]]
        alpha, sigma = signal_and_noise(self.process, t, x0)
        if self.predicts_v:
            per_sample = losses.simple(predicted, velocity(x0, noise, alpha, sigma))
            eps = eps_from_v(x_t, predicted, alpha, sigma)
        else:
            per_sample, eps = losses.simple(predicted, noise), predicted
        log = {"mse": per_sample.detach()}
        if self.hybrid:
            fraction = output[:, x0.shape[1] :]
            bound = losses.variational_bound(self.process, eps.detach(), fraction, x0, x_t, t)
            per_sample = per_sample + bound
            log["vb"] = bound.detach()
        return TaskLoss(per_sample.mean(), log)

    def labels(self, batch: TaskBatch) -> torch.Tensor | None:
        """The labels, dropped ones replaced by the null label, which is the last row; None if unconditional."""
        if not self.num_classes:
            return None
        return torch.where(batch.draws["dropped_label"], self.num_classes, batch.labels)
