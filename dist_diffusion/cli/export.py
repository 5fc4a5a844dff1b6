"""`dist-diffusion export`."""

import os
from collections.abc import Sequence

from dist_diffusion.cli.recipe import check_alone
from dist_diffusion.config.load import load_options
from dist_diffusion.config.schema import ExportOptions, TrainRecipe
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import ConfigError, alike
from dist_diffusion.runs.layout import step_name
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.resolve import find, run_and_step


def run(run_path: str, overrides: Sequence[str], topology: Topology) -> None:
    """Makes one average of a run a file of its own, in one process."""
    with alike():
        options = load_options(ExportOptions, [in_full(text) for text in overrides])
        check_alone("export", topology)
    print(export(run_path, options))


def in_full(override: str) -> str:
    """`ema=NAME` is short for `ema.name=NAME`."""
    key, equals, value = override.partition("=")
    return f"ema.name={value}" if equals and key == "ema" else override


def export(run_path: str, options: ExportOptions) -> str:
    """The same; returns what to say of it. The file is replaced atomically, once it is whole."""
    if files.exists(run_path) and not files.is_dir(run_path):
        raise ConfigError(f"{run_path} is an export already, which can be copied as it is: give a run, or RUN@STEP")
    if options.ema.std is None:
        return copied(run_path, options)
    if options.ema.name is not None:
        raise ConfigError(f"ema={options.ema.name} is one average, ema.std={options.ema.std:g} another: give one")
    return made(run_path, options.ema.std, options.out)


def copied(run_path: str, options: ExportOptions) -> str:
    """An average that a commit exports, compared with its marker."""
    from dist_diffusion.weights.files import header  # not for the other ranks of a refused launch: it imports torch

    source = find(run_path, options.ema.name)
    recipe, info = header(source)
    # Of RUN/checkpoints/COMMIT/EXPORT.
    run_dir = os.path.dirname(os.path.dirname(os.path.dirname(source)))
    out = options.out or default_path(run_dir, info["average"], info["step"])
    publish.copy(source, out)
    return described(out, recipe, info["average"], info["step"])


def made(run_path: str, std: float, out: str | None) -> str:
    """An average of any width, made of the run's snapshots."""
    from dist_diffusion.weights import files as weight_files
    from dist_diffusion.weights.posthoc import LARGE_ERROR, reconstruct

    run_dir, step = run_and_step(run_path)
    result = reconstruct(run_dir, step, std)
    info = result.info
    out = out or default_path(run_dir, info["average"], info["step"])
    weight_files.save(out, result.tensors, result.recipe, info)
    error, widths = info["profile_error"], ", ".join(sorted({part["average"] for part in info["made_of"]}))
    num_steps = len({part["step"] for part in info["made_of"]})
    lines = [
        described(out, result.recipe, info["average"], info["step"]),
        f"made of {widths} at {num_steps} step{'s' if num_steps > 1 else ''}; its profile is {error:.2%} off",
    ]
    if error > LARGE_ERROR:
        lines.append(
            f"warning: that is not quite an average of std {std:g}: more snapshots (ema.snapshot_every_commits, "
            "checkpoint.every) bring it nearer, and so do ema.stds around it"
        )
    return "\n".join(lines)


def described(path: str, recipe: TrainRecipe, average: str, step: int) -> str:
    """What an export is, in a line."""
    classes = recipe.model.num_classes
    return (
        f"{path}: {recipe.task} model, {average} of step {step}, "
        f"{f'{classes} classes' if classes else 'unconditional'}, {files.size(path) / 1e6:.1f} MB"
    )


def default_path(run_dir: str, average: str, step: int) -> str:
    """A name in the run directory."""
    return os.path.join(run_dir, f"export-{average}-{step_name(step)}.safetensors")
