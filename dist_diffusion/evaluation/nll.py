"""`dist-diffusion nll`: bits per dimension of a dataset under a diffusion model, on this launch's ranks."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_diffusion.config.load import to_dict, to_yaml
from dist_diffusion.config.schema import DiffusionRecipe, NllRecipe
from dist_diffusion.diffusion.bits import Bits, bits_per_dimension
from dist_diffusion.diffusion.denoiser import clipped, model_denoiser
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.distributed.agreement import gather, on_rank_zero, together
from dist_diffusion.distributed.group import Group, set_deterministic
from dist_diffusion.errors import ConfigError, NonFiniteError
from dist_diffusion.evaluation.images import ShardImages
from dist_diffusion.observe.console import Console
from dist_diffusion.observe.throughput import Throughput, human
from dist_diffusion.sampling import npz
from dist_diffusion.sampling.noise import ImageNoise
from dist_diffusion.sampling.pixels import from_uint8, not_finite
from dist_diffusion.storage import files, publish
from dist_diffusion.weights.load import LoadedModel, load_model
from dist_diffusion.weights.resolve import find

RESULT, TERMS, CONFIG = "nll.json", "terms.npz", "config.yaml"
NOISE = "nll_noise"
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class Measurement:
    """What is measured: a model, images, and the path of levels; the same in every rank."""

    model: LoadedModel
    trained: DiffusionRecipe
    images: ShardImages
    levels: list[Level]


@dataclass(frozen=True)
class Part:
    """What one batch of images gave, in float64."""

    number: int
    """Of the batch, in the order of the images."""
    total: np.ndarray
    """(n,): bits per dimension of each image."""
    prior: np.ndarray
    """(n,)"""
    sums: np.ndarray
    """(3, S): of the bound's terms, the image's squared errors and the noise's, over the images."""


def run_nll(recipe: NllRecipe, group: Group, console: Console) -> dict[str, Any]:
    """Measures each rank's share of the batches and writes nll.json and terms.npz; returns nll.json's content.

    The result depends on ranks and batch_size only by rounding.
    """
    set_deterministic(True)
    assert recipe.model is not None and recipe.out is not None
    model, out = recipe.model, recipe.out
    # Found once: a run may commit while its ranks look.
    export = on_rank_zero(group, lambda: find(model, recipe.ema))
    # Before the long part: an `out` that cannot be written is found now.
    on_rank_zero(group, lambda: publish.write_bytes(files.join(out, CONFIG), to_yaml(recipe).encode()))
    measurement = together(group, lambda: prepare(recipe, export, group.device))
    num = measurement.images.num_images
    console.say(f"{export}: {num} images of {measurement.images.path}, {len(measurement.levels) - 1} steps each")
    parts = together(group, lambda: list(measure(measurement, recipe, group.rank, group.world_size, console.say)))
    ordered = sorted(itertools.chain(*gather(group, parts)), key=lambda part: part.number)
    return on_rank_zero(group, lambda: report(measurement, recipe, ordered, console.say))


def prepare(recipe: NllRecipe, export: str, device: torch.device) -> Measurement:
    """Loads and checks. ConfigError where model, images and settings do not fit together."""
    assert recipe.data.shards is not None
    model = load_model(export, device=device)
    trained = model.recipe
    if not isinstance(trained, DiffusionRecipe) or trained.task != "diffusion":
        raise ConfigError(f"model={export} is of task {trained.task}: nll measures models of task diffusion")
    if trained.data.latents:
        raise ConfigError(f"model={export} was trained on latents: nll measures images")
    images = ShardImages(recipe.data.shards, trained.model.image_size, recipe.num_samples)
    if recipe.num_samples not in (None, images.num_images):
        raise ConfigError(
            f"num_samples={recipe.num_samples}, but data.shards={images.path} holds {images.num_images}: ask for fewer"
        )
    if trained.model.num_classes not in (0, images.num_classes):
        raise ConfigError(
            f"model={export} knows {trained.model.num_classes} classes, data.shards={images.path} lists "
            f"{images.num_classes}: give the shards of its own classes"
        )
    return Measurement(model, trained, images, sampling_levels(trained.diffusion, recipe.steps))


def measure(
    measurement: Measurement, recipe: NllRecipe, rank: int, world_size: int, say: Callable[[str], None]
) -> Iterator[Part]:
    """This rank's batches, one after the other."""
    images, size = measurement.images, recipe.batch_size
    numbers = range(rank, math.ceil(images.num_images / size), world_size)
    throughput, said = Throughput(len(numbers), 0), time.monotonic()
    throughput.update(0, said)
    batches = images.batches(size, first=rank, stride=world_size)
    for done, (number, pixels) in enumerate(zip(numbers, batches, strict=True), start=1):
        indices = range(number * size, number * size + len(pixels))
        yield part(number, bits_of(measurement, recipe, pixels, indices))
        throughput.update(done, time.monotonic())
        if done < len(numbers) and time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            say(f"{done}/{len(numbers)} batches of this rank, ETA {human(throughput.eta_s)}")


def bits_of(measurement: Measurement, recipe: NllRecipe, pixels: np.ndarray, indices: Sequence[int]) -> Bits:
    """Of one batch, uint8 NHWC; the noise is each image's own."""
    module, options = measurement.model.module, measurement.trained
    device = next(module.parameters()).device
    x0 = from_uint8(pixels, device)
    _, channels, height, width = x0.shape
    noise = ImageNoise(recipe.seed, NOISE, indices, (channels, height, width), device)
    labels = None
    if options.model.num_classes:
        assert measurement.images.labels is not None
        labels = torch.from_numpy(measurement.images.labels[indices]).to(device)
    denoiser = model_denoiser(module, options.diffusion)
    denoiser = clipped(denoiser) if recipe.clip_x0 else denoiser
    bits = bits_per_dimension(denoiser, measurement.levels, x0, noise, labels)
    check_finite(bits.total, indices, measurement.model.path)
    return bits


def check_finite(total: torch.Tensor, indices: Sequence[int], model: str) -> None:
    """NonFiniteError names the images that have no likelihood."""
    wrong = not_finite(total, indices)
    if wrong:
        raise NonFiniteError(
            f"the bits per dimension of images {', '.join(map(str, wrong))} under {model} are not finite: its weights, "
            "or its variances, are not"
        )


def part(number: int, bits: Bits) -> Part:
    """A batch's bits without what only single images have."""
    total, prior, *terms = (value.double().cpu().numpy() for value in bits)
    return Part(number, total, prior, np.stack([term.sum(axis=0) for term in terms]))


def report(
    measurement: Measurement, recipe: NllRecipe, parts: Sequence[Part], say: Callable[[str], None]
) -> dict[str, Any]:
    """Writes the outputs and says the result."""
    assert recipe.out is not None
    result, num = summary(measurement, recipe, parts), measurement.images.num_images
    means = np.sum([part.sums for part in parts], axis=0) / num
    times = np.array([level.model_time for level in measurement.levels[:-1]])
    columns = dict(zip(("model_time", "vb", "x0_mse", "eps_mse"), (times, *means), strict=True))
    streamed = {name: npz.Streamed(values.shape, values.dtype, [values]) for name, values in columns.items()}
    npz.publish_npz(files.join(recipe.out, TERMS), streamed)
    publish.write_json(files.join(recipe.out, RESULT), result)
    error = result["standard_error"]
    spread = "" if error is None else f" +- {error:.4f}"
    say(f"{result['bits_per_dim']:.4f}{spread} bits per dimension, written to {files.join(recipe.out, RESULT)}")
    return result


def summary(measurement: Measurement, recipe: NllRecipe, parts: Sequence[Part]) -> dict[str, Any]:
    """The content of nll.json."""
    totals = np.concatenate([part.total for part in parts])
    info = measurement.model.info
    return {
        "bits_per_dim": float(totals.mean()),
        "standard_error": float(totals.std(ddof=1) / math.sqrt(len(totals))) if len(totals) > 1 else None,
        "prior_bits_per_dim": float(np.concatenate([part.prior for part in parts]).mean()),
        "num_samples": len(totals),
        "num_steps": len(measurement.levels) - 1,
        "export": measurement.model.path,
        "step": info.get("step"),
        "average": info.get("average"),
        "shards_checksum": measurement.images.checksum(),
        "settings": to_dict(recipe),
    }
