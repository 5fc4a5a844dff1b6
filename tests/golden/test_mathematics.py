"""Schedules, losses and samplers give the reference implementation's numbers (its analytic stand-in model)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.diffusion import losses, samplers, schedules
from dist_diffusion.diffusion.denoiser import clipped, model_denoiser
from dist_diffusion.diffusion.gaussians import make_process, q_sample
from dist_diffusion.diffusion.guidance import score_shifted
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions

FOLDER = Path(__file__).parent
META = json.loads((FOLDER / "meta.json").read_text())
SCHEDULES = np.load(FOLDER / "schedules.npz")
LOSSES = np.load(FOLDER / "losses.npz")
SAMPLERS = np.load(FOLDER / "samplers.npz")


def stand_in(learn_sigma: bool):
    def model(x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        t = t.float().view(-1, 1, 1, 1)
        eps = META["A"] * x * torch.cos(t / 200) + 0.1 * torch.sin(3 * x)
        return torch.cat([eps, torch.tanh(x) * torch.cos(t / 100)], 1) if learn_sigma else eps

    return model


def stand_in_gradient(x: torch.Tensor, level: Level, labels: torch.Tensor | None) -> torch.Tensor:
    return -0.5 * x * math.exp(-level.model_time / 500) + 0.2


@pytest.mark.parametrize("num", [50, 1000])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedule_tables(name: str, num: int) -> None:
    process = make_process(schedules.betas(DiffusionOptions(schedule=name, num_timesteps=num)))
    for ours, table in [
        (process.beta, "betas"),
        (process.alpha_bar, "alphas_cumprod"),
        (process.posterior_log_variance, "posterior_log_variance_clipped"),
        (process.posterior_x0, "posterior_mean_coef1"),
        (process.posterior_x_t, "posterior_mean_coef2"),
    ]:
        np.testing.assert_allclose(ours.numpy(), SCHEDULES[f"{name}_{num}_{table}"], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("spec", META["respacing_specs"])
def test_respacing(spec: str) -> None:
    stem = spec.replace(",", "_")
    kept = schedules.respace(spec, 1000)
    assert kept == SCHEDULES[f"spaced_{stem}"].tolist()
    levels = schedules.sampling_levels(DiffusionOptions(schedule="cosine"), spec)[:-1]
    betas = np.exp([level.log_beta for level in reversed(levels)])
    np.testing.assert_allclose(betas, SCHEDULES[f"spacedbetas_cosine_{stem}"], rtol=1e-10)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_hybrid_loss(name: str) -> None:
    process = make_process(schedules.betas(DiffusionOptions(schedule=name)))
    x0, noise, t = (torch.tensor(LOSSES[key]) for key in ("x_start", "noise", "t"))
    x_t = q_sample(process, x0, t, noise)
    eps, fraction = stand_in(True)(x_t, t, None).chunk(2, dim=1)
    mse = losses.simple(eps, noise)
    bound = losses.variational_bound(process, eps, fraction, x0, x_t, t)
    for ours, kind in [(mse, "mse"), (bound, "vb"), (mse + bound, "loss")]:
        reference = LOSSES[f"{name}_ls1_kl0_resc0_px0_{kind}"]
        assert np.abs(ours.numpy() - reference).max() <= 1e-5 * max(1, np.abs(reference).max())


@pytest.mark.parametrize("learn_sigma", [False, True])
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("case", ["ddpm", "ddpm_guided", "ddim", "ddim_guided", "ddim_eta1"])
def test_samplers(name: str, learn_sigma: bool, case: str) -> None:
    variance = "learned_range" if learn_sigma else "fixed_large"
    options = DiffusionOptions(schedule=name, variance=variance)
    denoiser = clipped(model_denoiser(stand_in(learn_sigma), options))
    x, generator = torch.tensor(SAMPLERS["x_T"]), torch.Generator().manual_seed(31 + META["salt"])
    levels = schedules.sampling_levels(options, META["ddpm_spec" if "ddpm" in case else "ddim_spec"])

    def noise() -> torch.Tensor:
        return torch.randn(x.shape, generator=generator)

    if "ddpm" in case:
        out = samplers.ddpm(denoiser, levels, x, noise, None, stand_in_gradient if "guided" in case else None)
    else:
        guided = score_shifted(denoiser, stand_in_gradient) if "guided" in case else denoiser
        out = samplers.ddim(guided, levels, x, noise, None, eta=float("eta1" in case))
    reference = torch.tensor(SAMPLERS[f"{name}_ls{int(learn_sigma)}_{case}_out"])
    torch.testing.assert_close(out, reference, atol=1e-5, rtol=1e-5)
