"""A sample grid from a commit's export, made by all ranks, shown by rank 0."""

import numpy as np

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion.options import GuidanceOptions
from dist_diffusion.distributed.agreement import gather, together
from dist_diffusion.distributed.group import Group
from dist_diffusion.observe.grids import grid
from dist_diffusion.sampling.generate import make_generator
from dist_diffusion.sampling.models import Models
from dist_diffusion.weights.load import load_model


def preview(recipe: DiffusionRecipe, export: str, group: Group) -> np.ndarray:
    """The grid of preview.num_images images at fixed seed and labels, uint8 HWC, in every rank."""
    options = recipe.preview
    use_cfg = options.cfg_scale != 1 and recipe.objective.p_uncond > 0
    guidance = GuidanceOptions(mode="cfg" if use_cfg else "none", cfg_scale=options.cfg_scale)
    models = Models(together(group, lambda: load_model(export, device=group.device)))
    generate = make_generator(models, options.sampler, guidance, recipe.seed, group.device)
    share = range(group.rank, options.num_images, group.world_size)
    # Together: where one rank's images are not finite, none may wait for them.
    mine = together(group, lambda: dict(zip(share, generate(share)[0], strict=True)) if share else {})
    made = {index: image for part in gather(group, mine) for index, image in part.items()}
    images = np.stack([made[i] for i in range(options.num_images)])
    return grid(images, columns=max(1, round(options.num_images**0.5)))
