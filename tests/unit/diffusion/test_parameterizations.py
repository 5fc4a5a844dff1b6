"""What a network predicts, and back: each prediction says the same of x_t."""

import math

import pytest
import torch

from dist_diffusion.diffusion.denoiser import edm_denoiser, model_denoiser
from dist_diffusion.diffusion.gaussians import make_process, q_sample
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, eps_from, network_input, target, x0_from
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.timeline import timeline
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import UNetOptions

PREDICTIONS = ["eps", "x0", "mean", "v", "edm"]
T = torch.tensor([1, 30, 250, 500, 750, 900])


def pair(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num, 3, 4, 4)
    return torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_target_is_turned_back_into_image_and_noise(prediction: str) -> None:
    options = DiffusionOptions(schedule="cosine", prediction=prediction)  # type: ignore[arg-type]
    process = make_process(options)
    x0, eps = pair(len(T))
    level, _ = process.levels(T, x0)
    x_t = q_sample(x0, eps, level)
    output = target(options, x0, eps, level)
    # Where the image is faint in x_t, float32 leaves it few digits.
    torch.testing.assert_close(x0_from(options, output, x_t, level), x0, atol=2e-3, rtol=0)
    torch.testing.assert_close(eps_from(options, output, x_t, level), eps, atol=2e-3, rtol=0)
    assert (network_input(options, x_t, level) is x_t) == (prediction != "edm")


def test_v_and_the_mean_are_what_the_papers_say() -> None:
    process = make_process(DiffusionOptions())
    x0, eps = pair(1)
    t = torch.tensor([400])
    level, _ = process.levels(t, x0)
    alpha, sigma = process.alpha_bar[400].sqrt().item(), (1 - process.alpha_bar[400]).sqrt().item()
    v, of_mean = DiffusionOptions(prediction="v"), DiffusionOptions(prediction="mean")
    torch.testing.assert_close(target(v, x0, eps, level), alpha * eps - sigma * x0)
    # arXiv 2006.11239, equation 11: the posterior's mean by the noise.
    beta = process.beta[400].item()
    mean = (alpha * x0 + sigma * eps - beta / sigma * eps) / (1 - beta) ** 0.5
    torch.testing.assert_close(target(of_mean, x0, eps, level), mean)


@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.002, 0.3, 4.0, 80.0])
def test_edms_preconditioning_is_table_1(sigma: float, sigma_data: float) -> None:
    """arXiv 2206.00364: D(x) = c_skip x + c_out F(c_in x) of x = x0 + sigma n, here of x_t = alpha x."""
    options = DiffusionOptions(prediction="edm", sigma_data=sigma_data)
    alpha = 1 / math.hypot(1, sigma)
    at = Coefficients(alpha, alpha * sigma)
    x0, eps = (part.double() for part in pair(2))
    x = x0 + sigma * eps
    total = sigma**2 + sigma_data**2
    skip, out, scale_in = sigma_data**2 / total, sigma * sigma_data / total**0.5, total**-0.5
    output = target(options, x0, eps, at)
    torch.testing.assert_close(output, (x0 - skip * x) / out)
    torch.testing.assert_close(network_input(options, alpha * x, at), scale_in * x)
    guessed = 0.9 * output
    torch.testing.assert_close(x0_from(options, guessed, alpha * x, at), skip * x + out * guessed)
    found = eps_from(options, guessed, alpha * x, at)
    torch.testing.assert_close(found, (x - skip * x - out * guessed) / sigma, rtol=1e-6, atol=1e-9)
    if sigma_data == 1:
        torch.testing.assert_close(output, -target(DiffusionOptions(prediction="v"), x0, eps, at))
        torch.testing.assert_close(network_input(options, alpha * x, at), alpha * x)


LABEL_MEANS, STD = torch.tensor([-0.5, 0.1, 0.6]), 0.3


def exact_denoised(x: torch.Tensor, sigma: float, labels: torch.Tensor) -> torch.Tensor:
    """D of a target that is Gaussian in each class."""
    return (STD**2 * x + sigma**2 * LABEL_MEANS[labels].view(-1, 1, 1, 1)) / (STD**2 + sigma**2)


def told_sigma(options: DiffusionOptions, time: float) -> float:
    """sigma / alpha by what the network is told, between two timesteps by their log-SNR."""
    if options.schedule == "log_snr":
        return math.tan(math.pi / 2 * time / 1000)
    bars = make_process(options).alpha_bar
    log_sigmas = 0.5 * ((1 - bars) / bars).log()
    t = min(int(time), 998)
    return math.exp(torch.lerp(log_sigmas[t], log_sigmas[t + 1], time - t))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "edm"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_snr"])
def test_edms_view_of_an_exact_network_is_the_known_denoiser(schedule: str, prediction: str) -> None:
    """Between timesteps too, where the network is told a fraction of one."""
    options = DiffusionOptions(schedule=schedule, prediction=prediction, variance="fixed_small")  # type: ignore[arg-type]
    times = timeline(options)
    sigmas = [max(times.sigma_min, 0.011), 0.3, 1.0, 4.0, min(times.sigma_max, 150.0)]

    def network(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        assert told_sigma(options, time[0].item()) == pytest.approx(sigma, rel=1e-4)
        level = times.level(sigma)
        at = Coefficients(level.alpha, level.sigma)
        x_t = x * (level.sigma**2 + (0.5 * level.alpha) ** 2) ** 0.5 if prediction == "edm" else x
        assert labels is not None
        x0 = exact_denoised(x_t / level.alpha, sigma, labels)
        return target(options, x0, (x_t - level.alpha * x0) / level.sigma, at)

    denoise = edm_denoiser(model_denoiser(network, options), times)
    labels = torch.tensor([0, 1, 2])
    for sigma in sigmas:
        x = LABEL_MEANS[labels].view(-1, 1, 1, 1) + math.hypot(STD, sigma) * pair(3)[1]
        # Of a predicted noise, float32 leaves sigma times less of the image.
        tolerance = 1e-6 * max(10, 2 * sigma)
        torch.testing.assert_close(denoise(x, sigma, labels), exact_denoised(x, sigma, labels), atol=tolerance, rtol=0)
    for outside in (0.99 * times.sigma_min, 1.01 * times.sigma_max):
        with pytest.raises(ConfigError, match="the model was trained from"):
            denoise(x, outside, labels)


def test_edms_view_of_an_adm_is_the_iddpm_preconditioning() -> None:
    """arXiv 2206.00364, table 1: c_skip 1, c_out -sigma, c_in 1 / sqrt(sigma^2 + 1), told the timestep."""
    options = DiffusionOptions()
    torch.manual_seed(0)
    network = build(
        UNetOptions(
            channels=32,
            num_res_blocks=1,
            channel_mult=(1, 2),
            attention_resolutions=(4,),
            num_head_channels=16,
            image_size=8,
            num_classes=3,
            out_channels=6,
        )
    ).eval()
    # Much starts at 0, so that an untrained network would not see its timestep.
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    denoise = edm_denoiser(model_denoiser(network, options), timeline(options))
    bars, labels = make_process(options).alpha_bar, torch.tensor([0, 2])
    x0, noise = (torch.nn.functional.interpolate(part, 8) for part in pair(2))
    for t in (0, 1, 37, 500, 998, 999):
        sigma = ((1 - bars[t]) / bars[t]).sqrt().item()
        x = x0 + sigma * noise
        with torch.no_grad():
            raw = network(x / math.sqrt(sigma**2 + 1), torch.full((2,), t), labels)[:, :3]
            by_hand, ours = x - sigma * raw, denoise(x, sigma, labels)
        assert raw.std() > 0.01
        assert (ours - by_hand).norm() <= 1e-5 * by_hand.norm()


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
        return target(options, x0, eps, level)

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
