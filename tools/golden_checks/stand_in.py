"""Losses, samplers and bits per dimension of the analytic stand-in model that the golden folder's README defines."""

import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.bits import Bits, bits_per_dimension
from dist_diffusion.diffusion.denoiser import Denoiser, Model, clipped, model_denoiser
from dist_diffusion.diffusion.gaussians import make_process
from dist_diffusion.diffusion.guidance import score_shifted
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.tasks.diffusion import DiffusionTask
from dist_diffusion.tasks.noising import noised
from golden_checks.folder import Archive, Folder
from golden_checks.report import MissingError, Row, distance, measured
from golden_checks.schedules import diffusion_options

SAMPLES = 1e-5
"""Absolute."""
LOSSES = 1e-5
"""Relative, and absolute below 1; of bits per dimension too."""
KL = 1e-4
"""Of use_kl's losses, relative."""
FIRST_STEP_OF_X0 = 2e-2
"""Of predict_xstart's losses at t = 0, relative: the fp32 reference itself cancels there."""
LOSS = re.compile(r"(linear|cosine)_ls([01])_kl([01])_resc([01])_px([01])_(loss|mse|vb)")
SAMPLER = re.compile(r"(linear|cosine)_ls([01])_(ddpm|ddim)(_guided)?(?:_eta(\d+\.?\d*))?(_encode)?_out")
BITS = re.compile(r"(linear|cosine)_ls([01])_(prior_bpd|total_bpd|vb|xstart_mse|mse)")
TAPE = "noise_tape_first_16"
SAMPLER_SEED, BITS_SEED = 31, 41


def model(a: float, learn_sigma: bool) -> Model:
    """The stand-in model."""

    def evaluate(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        t = t.float().view(-1, 1, 1, 1)
        output = a * x * torch.cos(t / 200) + 0.1 * torch.sin(3 * x)
        return torch.cat([output, torch.tanh(x) * torch.cos(t / 100)], dim=1) if learn_sigma else output

    return evaluate


def gradient(x: torch.Tensor, level: Level, labels: torch.Tensor | None) -> torch.Tensor:
    """The stand-in classifier's gradient, scaled already."""
    return -0.5 * x * math.exp(-level.model_time / 500) + 0.2


class Noise:
    """The noise of one run: each call is its next draw."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._generator, self._shape = torch.Generator().manual_seed(seed), shape

    def __call__(self) -> torch.Tensor:
        """The next draw."""
        return torch.randn(self._shape, generator=self._generator)


def check_losses(folder: Folder, archive: Archive) -> Iterator[Row]:
    """A row for each term of each combination of options, two where t = 0 has a tolerance of its own."""
    first = archive["t"] == 0
    for name in archive.names():
        if found := LOSS.fullmatch(name):
            kl, x0 = found[3] == "1", found[5] == "1"
            parts = [("", np.full_like(first, True), KL if kl else LOSSES)]
            if x0 and first.any():
                parts = [(" at t > 0", ~first, parts[0][2]), (" at t = 0", first, FIRST_STEP_OF_X0)]
            for where, chosen, tolerance in parts:
                title = f"losses {name}{where}"
                yield measured(title, tolerance, loss_error, folder, archive, found, chosen, tolerance)


def loss_recipe(found: re.Match[str], shape: tuple[int, ...]) -> DiffusionRecipe:
    """Our recipe of guided-diffusion's options, which the array's name tells."""
    schedule, (learn_sigma, use_kl, rescaled, predict_xstart) = found[1], (found[i] == "1" for i in range(2, 6))
    return DiffusionRecipe(
        diffusion=diffusion_options(schedule, learn_sigma=learn_sigma, predict_xstart=predict_xstart),
        objective=ObjectiveOptions(loss=loss_of(learn_sigma, use_kl, rescaled)),
        model=UNetOptions(in_channels=shape[1], image_size=shape[2], num_classes=0),
    )


def loss_of(learn_sigma: bool, use_kl: bool, rescaled: bool) -> Literal["simple", "hybrid", "rescaled", "kl"]:
    """Our name of the loss: use_kl comes first, and where the variance is fixed no bound trains it."""
    if use_kl:
        return "kl"
    if not learn_sigma:
        return "simple"
    return "rescaled" if rescaled else "hybrid"


def loss_error(folder: Folder, archive: Archive, found: re.Match[str], chosen: np.ndarray, tolerance: float) -> float:
    """Of one term of our training task, or their sum, for the chosen samples."""
    name, term, recipe = found[0], found[6], loss_recipe(found, archive["x_start"].shape)
    process = make_process(recipe.diffusion)
    task = DiffusionTask(recipe, process)
    x0, noise, t = (torch.tensor(archive[key]) for key in ("x_start", "noise", "t"))
    made = noised(process, x0, noise, (t.double() + 0.5) / process.num_timesteps)
    stand_in = model(folder.meta("A"), recipe.diffusion.variance == "learned_range")
    terms = task.terms(stand_in(made.x_t, made.time, None), x0, noise, made)
    if term not in ("loss", *terms):
        raise MissingError(f"objective.loss={recipe.objective.loss} has no term {term}")
    ours = torch.stack(list(terms.values())).sum(dim=0) if term == "loss" else terms[term]
    return scaled(ours[torch.tensor(chosen)], archive[name][chosen], tolerance)


def scaled(ours: torch.Tensor, reference: np.ndarray, tolerance: float) -> float:
    """The largest error relative to the reference, but what is below LOSSES absolutely is within the tolerance."""
    return distance(ours.numpy(), reference, np.maximum(np.abs(reference), LOSSES / tolerance))


def check_samplers(folder: Folder, archive: Archive) -> Iterator[Row]:
    """A row for each run, and one for the noise that they draw."""
    for name in archive.names():
        if found := SAMPLER.fullmatch(name):
            yield measured(f"samplers {name}", SAMPLES, sampler_error, folder, archive, found)
        elif name == TAPE:
            yield measured(f"samplers {name}", SAMPLES, tape_error, folder, archive[name])


def sampler_error(folder: Folder, archive: Archive, found: re.Match[str]) -> float:
    """Of one run's images, or for encode of its noise."""
    name, schedule, learned, sampler, guided, eta, encode = found[0], *found.groups()
    options = diffusion_options(schedule, learn_sigma=learned == "1")
    levels = sampling_levels(options, str(folder.meta(f"{sampler}_spec")))
    denoiser = stand_in_denoiser(folder, options)
    if encode:
        x = samplers.ddim_encode(denoiser, levels, x_start(folder), None)
        return distance(x.numpy(), archive[name])
    x_T = torch.tensor(archive["x_T"])
    noise = Noise(SAMPLER_SEED + folder.meta("salt"), x_T.shape)
    if sampler == "ddpm":
        x = samplers.ddpm(denoiser, levels, x_T, noise, None, gradient if guided else None)
    else:
        denoiser = score_shifted(denoiser, gradient) if guided else denoiser
        x = samplers.ddim(denoiser, levels, x_T, noise, None, float(eta or 0))
    return distance(x.numpy(), archive[name])


def stand_in_denoiser(folder: Folder, options: DiffusionOptions) -> Denoiser:
    """Of the stand-in model, x0 clipped."""
    stand_in = model(folder.meta("A"), options.variance == "learned_range")
    return clipped(model_denoiser(stand_in, options))


def x_start(folder: Folder) -> torch.Tensor:
    """The images of losses.npz, which nll.npz holds as well."""
    held = [stem for stem in ("losses", "nll") if stem in folder.stems]
    if not held:
        raise MissingError("losses.npz, whose x_start it encodes, is not in the folder")
    return torch.tensor(folder.archive(held[0])["x_start"])


def tape_error(folder: Folder, tape: np.ndarray) -> float:
    """Of the first draws of a run."""
    noise = Noise(SAMPLER_SEED + folder.meta("salt"), tape.shape[1:])
    return distance(torch.stack([noise() for _ in tape]).numpy(), tape)


def check_bits(folder: Folder, archive: Archive) -> Iterator[Row]:
    """A row for each term of each process."""
    held = functools.cache(functools.partial(bits, folder, archive))
    for name in archive.names():
        if found := BITS.fullmatch(name):
            yield measured(f"nll {name}", LOSSES, bits_error, held, archive[name], found)


def bits(folder: Folder, archive: Archive, schedule: str, learn_sigma: bool) -> Bits:
    """Ours, of the archive's images."""
    options = diffusion_options(schedule, learn_sigma=learn_sigma)
    levels = sampling_levels(options, str(folder.meta("nll_spec")))
    x0 = torch.tensor(archive["x_start"])
    noise = Noise(BITS_SEED + folder.meta("salt"), x0.shape)
    return bits_per_dimension(stand_in_denoiser(folder, options), levels, x0, noise, None)


def bits_error(held: Callable[[str, bool], Bits], reference: np.ndarray, found: re.Match[str]) -> float:
    """Of one of its terms."""
    ours = held(found[1], found[2] == "1")
    terms = {
        "prior_bpd": ours.prior,
        "total_bpd": ours.total,
        "vb": ours.terms,
        "xstart_mse": ours.x0_mse,
        "mse": ours.eps_mse,
    }
    return scaled(terms[found[3]], reference, LOSSES)
