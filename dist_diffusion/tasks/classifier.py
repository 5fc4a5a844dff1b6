"""Training of the noise-aware classifier (arXiv 2105.05233, section 4)."""

from torch.nn import functional as F

from dist_diffusion.config.schema import ClassifierRecipe
from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.draws import Draw, Normal, Uniform
from dist_diffusion.tasks.noising import AnyProcess, noised
from dist_diffusion.tasks.task import Forward, Mean, TaskBatch, TaskLoss, by_quartile, to_unit_range

TOP = 5
"""The label among so many most probable classes also counts, where there are more."""


class ClassifierTask:
    """Tell the class of a noised image, at every noise level."""

    history: LossHistory | None = None

    def __init__(self, recipe: ClassifierRecipe, process: AnyProcess) -> None:
        model = recipe.model
        assert model.image_size is not None
        self.process = process
        shape = (model.in_channels, model.image_size, model.image_size)
        self.draws: tuple[Draw, ...] = (Uniform("timestep"), Normal("noise", shape))

    def loss(self, forward: Forward, batch: TaskBatch) -> TaskLoss:
        """Cross-entropy of the label given (x_t, t)."""
        x0, noise = to_unit_range(batch.images), batch.draws["noise"]
        made = noised(self.process, x0, noise, batch.draws["timestep"])
        logits = forward(made.x_t, made.time, None).float()
        per_sample = F.cross_entropy(logits, batch.labels, reduction="none")
        scores = {"accuracy": (logits.argmax(dim=1) == batch.labels).float()}
        if logits.shape[1] > TOP:
            scores[f"accuracy_top{TOP}"] = (logits.topk(TOP).indices == batch.labels[:, None]).any(dim=1).float()
        log = {name: Mean.of(values) for name, values in scores.items()}
        for name, values in scores.items():
            log |= by_quartile(name, values, made.quartile)
        return TaskLoss(per_sample.mean(), log)
