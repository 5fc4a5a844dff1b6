"""Training of the super-resolution network (arXiv 2105.05233, section 3)."""

import torch
from torch.nn import functional as F

from dist_diffusion.config.schema import SuperResolutionRecipe
from dist_diffusion.diffusion.parameterizations import network_input
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.noising import AnyProcess, Noised
from dist_diffusion.tasks.task import Forward


class SuperResolutionTask(DiffusionTask):
    """A diffusion task whose network is also given the clean image at model.low_res_size."""

    def __init__(self, recipe: SuperResolutionRecipe, process: AnyProcess) -> None:
        super().__init__(recipe, process)
        self.low_res_size = recipe.model.low_res_size

    def predict(self, forward: Forward, made: Noised, x0: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The network's output, given the averages of x0's pixels as the released training gives them."""
        low_res = F.interpolate(x0, self.low_res_size, mode="area")
        return forward(network_input(self.options, made.x_t, made.level), made.time, labels, low_res)
