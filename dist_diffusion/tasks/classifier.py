"""Training of the noise-aware classifier (arXiv 2105.05233, section 4)."""

from torch.nn import functional as F

from dist_diffusion.config.schema import ClassifierRecipe
from dist_diffusion.diffusion.gaussians import Process, q_sample
from dist_diffusion.diffusion.timesteps import uniform_timesteps
from dist_diffusion.draws import Draw, Normal, Uniform
from dist_diffusion.tasks.task import Forward, TaskBatch, TaskLoss, to_unit_range


class ClassifierTask:
    """Tell the class of a noised image, at every noise level."""

    def __init__(self, recipe: ClassifierRecipe, process: Process) -> None:
        model = recipe.model
        assert model.image_size is not None
        self.process = process
        shape = (model.in_channels, model.image_size, model.image_size)
        self.draws: tuple[Draw, ...] = (Uniform("timestep"), Normal("noise", shape))

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """Cross-entropy of the label given (x_t, t)."""
        t = uniform_timesteps(batch.draws["timestep"], self.process.num_timesteps)
        x_t = q_sample(self.process, to_unit_range(batch.images), t, batch.draws["noise"])
        logits = forward(x_t, t, None).float()
        per_sample = F.cross_entropy(logits, batch.labels, reduction="none")
        correct = (logits.argmax(dim=1) == batch.labels).float()
        return TaskLoss(per_sample.mean(), {"accuracy": correct.detach()})
