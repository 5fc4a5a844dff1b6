"""`dist-diffusion export`."""

import os
from collections.abc import Sequence

from dist_diffusion.cli.recipe import check_alone
from dist_diffusion.config.load import load_options
from dist_diffusion.config.schema import ExportOptions
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import ConfigError, alike
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find, step_name


def run(run_path: str, overrides: Sequence[str], topology: Topology) -> None:
    """Copies an export of a run's commit to a file of its own, in one process."""
    with alike():
        options = load_options(ExportOptions, overrides)
        check_alone("export", topology)
    print(export(run_path, options))


def export(run_path: str, options: ExportOptions) -> str:
    """The same; returns what to say of it. The file is replaced atomically, once the copy is verified."""
    from dist_diffusion.weights.files import header  # not for the other ranks of a refused launch: it imports torch

    source = find(run_path, options.ema)
    if source == run_path:
        raise ConfigError(f"{run_path} is an export already, which can be copied as it is: give a run, or RUN@STEP")
    recipe, info = header(source)
    out = options.out or default_path(source, info["average"], info["step"])
    publish.copy(source, out)
    classes = recipe.model.num_classes
    return (
        f"{out}: {recipe.task} model, {info['average']} of step {info['step']}, "
        f"{f'{classes} classes' if classes else 'unconditional'}, {files.size(out) / 1e6:.1f} MB"
    )


def default_path(source: str, average: str, step: int) -> str:
    """A name in the run directory, RUN/checkpoints/COMMIT/EXPORT being the source."""
    run_dir = os.path.dirname(os.path.dirname(os.path.dirname(source)))
    return os.path.join(run_dir, f"export-{average}-{step_name(step)}.safetensors")
