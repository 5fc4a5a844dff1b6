"""Tables of the forward process, and respacing."""

import re
from collections.abc import Iterator

import numpy as np
import torch

from dist_diffusion.diffusion.gaussians import make_process
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.schedules import respace, sampling_levels
from golden_checks.folder import Archive, Folder
from golden_checks.report import MissingError, Row, distance, measured, relative

TABLES = 1e-10
"""Relative."""
TABLE = re.compile(r"(linear|cosine)_(\d+)_(\w+)")
SPACED = re.compile(r"spaced_(\w+)")
SPACED_BETAS = re.compile(r"spacedbetas_(linear|cosine)_(\w+)")
SPACED_TIMESTEPS = 1000
"""T of what is respaced."""


def check_schedules(folder: Folder, archive: Archive) -> Iterator[Row]:
    """A row for each table and each respacing; their names say of what."""
    for name in archive.names():
        title = f"schedules {name}"
        if found := SPACED_BETAS.fullmatch(name):
            yield measured(title, TABLES, spaced_beta_error, archive[name], found[1], spec_of(found[2]))
        elif found := SPACED.fullmatch(name):
            yield measured(title, 0.0, respacing_error, archive[name], spec_of(found[1]))
        elif found := TABLE.fullmatch(name):
            yield measured(title, TABLES, table_error, archive[name], found[1], int(found[2]), found[3])


def spec_of(stem: str) -> str:
    """The respacing spec of an array's name, which has _ in place of commas."""
    return stem.replace("_", ",")


def table_error(reference: np.ndarray, schedule: str, num_timesteps: int, table: str) -> float:
    """Of one table over T timesteps."""
    tables = process_tables(schedule, num_timesteps)
    if table not in tables:
        raise MissingError(f"table {table} is not known")
    return relative(tables[table].numpy(), reference)


def respacing_error(reference: np.ndarray, spec: str) -> float:
    """Of the timesteps kept."""
    return distance(np.array(respace(spec, SPACED_TIMESTEPS)), reference)


def spaced_beta_error(reference: np.ndarray, schedule: str, spec: str) -> float:
    """Of the betas between the timesteps kept."""
    levels = sampling_levels(diffusion_options(schedule), spec)[:-1]
    return relative(np.exp([level.log_beta for level in reversed(levels)]), reference)


def process_tables(schedule: str, num_timesteps: int) -> dict[str, torch.Tensor]:
    """The tables under guided-diffusion's names: its own of our process, or simple functions of alpha_bar."""
    process = make_process(diffusion_options(schedule, num_timesteps))
    bar = process.alpha_bar
    one, zero = torch.ones_like(bar[:1]), torch.zeros_like(bar[:1])
    return {
        "betas": process.beta,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": torch.cat([one, bar[:-1]]),
        "alphas_cumprod_next": torch.cat([bar[1:], zero]),
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": torch.cat([zero, process.posterior_log_variance[1:].exp()]),
        "posterior_log_variance_clipped": process.posterior_log_variance,
        "posterior_mean_coef1": process.posterior_x0,
        "posterior_mean_coef2": process.posterior_x_t,
    }


def diffusion_options(
    schedule: str, num_timesteps: int = 1000, learn_sigma: bool = True, predict_xstart: bool = False
) -> DiffusionOptions:
    """Our options, by guided-diffusion's."""
    assert schedule in ("linear", "cosine")
    return DiffusionOptions(
        schedule="linear" if schedule == "linear" else "cosine",
        num_timesteps=num_timesteps,
        prediction="x0" if predict_xstart else "eps",
        variance="learned_range" if learn_sigma else "fixed_large",
    )
