"""What a network predicts, and back: each prediction says the same of x_t."""

import pytest
import torch

from dist_diffusion.diffusion.denoiser import model_denoiser
from dist_diffusion.diffusion.gaussians import make_process, q_sample
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import eps_from, target, x0_from
from dist_diffusion.diffusion.schedules import sampling_levels

PREDICTIONS = ["eps", "x0", "mean", "v"]
T = torch.tensor([1, 30, 250, 500, 750, 900])


def pair(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num, 3, 4, 4)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_target_is_turned_back_into_image_and_noise(prediction: str) -> None:
    process = make_process(DiffusionOptions(schedule="cosine"))
    x0, eps = pair(len(T))
    level, _ = process.levels(T, x0)
    x_t = q_sample(x0, eps, level)
    output = target(prediction, x0, eps, level)  # type: ignore[arg-type]
    # Where the image is faint in x_t, float32 leaves it few digits.
    torch.testing.assert_close(x0_from(prediction, output, x_t, level), x0, atol=2e-3, rtol=0)  # type: ignore[arg-type]
    torch.testing.assert_close(eps_from(prediction, output, x_t, level), eps, atol=2e-3, rtol=0)  # type: ignore[arg-type]


def test_v_and_the_mean_are_what_the_papers_say() -> None:
    process = make_process(DiffusionOptions())
    x0, eps = pair(1)
    t = torch.tensor([400])
    level, _ = process.levels(t, x0)
    alpha, sigma = process.alpha_bar[400].sqrt().item(), (1 - process.alpha_bar[400]).sqrt().item()
    torch.testing.assert_close(target("v", x0, eps, level), alpha * eps - sigma * x0)
    # arXiv 2006.11239, equation 11: the posterior's mean by the noise.
    beta = process.beta[400].item()
    mean = (alpha * x0 + sigma * eps - beta / sigma * eps) / (1 - beta) ** 0.5
    torch.testing.assert_close(target("mean", x0, eps, level), mean)


@pytest.mark.parametrize("num_timesteps", [1000, 300])
@pytest.mark.parametrize("steps", ["full", "25", "ddim50"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_is_a_perfect_denoiser_at_any_respacing(
    prediction: str, steps: str, num_timesteps: int
) -> None:
    """A predicted mean is of the trained process's step, though the sampler's steps are longer."""
    options = DiffusionOptions(
        prediction=prediction,  # type: ignore[arg-type]
        variance="fixed_small",
        num_timesteps=num_timesteps,
        rescale_timesteps=num_timesteps != 1000,
    )
    process = make_process(options)
    x0, eps = pair(2)

    def network(x_t: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        level, _ = process.levels((time * num_timesteps / 1000).round().long(), x_t)
        return target(prediction, x0, eps, level)  # type: ignore[arg-type]

    denoise = model_denoiser(network, options)
    levels = sampling_levels(options, steps.replace("full", str(num_timesteps)))
    for level in levels[: -1 : max(1, len(levels) // 8)]:
        x_t = level.alpha * x0 + level.sigma * eps
        found = denoise(x_t, level, None)
        # What float32 leaves of x0, after it was multiplied by so little.
        share = (
            process.posterior_x0[round(level.model_time * num_timesteps / 1000)].item()
            if prediction == "mean"
            else level.alpha
        )
        torch.testing.assert_close(found.x0, x0, atol=max(1e-5, 1e-6 / share), rtol=0)
        torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x_t, atol=1e-4, rtol=0)
