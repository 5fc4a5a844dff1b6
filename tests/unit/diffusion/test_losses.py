"""Losses: the likelihood is a distribution, the bound a bound, and weights weigh the image's error."""

import pytest
import torch

from dist_diffusion.diffusion import losses
from dist_diffusion.diffusion.gaussians import make_process, normal_kl, q_sample
from dist_diffusion.diffusion.likelihood import discretized_gaussian_log_likelihood
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.diffusion.parameterizations import noise_of, target

PROCESS = make_process(DiffusionOptions())
T = torch.tensor([1, 5, 50, 200, 400, 600, 800, 999])
GENERATOR = torch.Generator().manual_seed(0)
X0 = torch.rand(8, 3, 4, 4, generator=GENERATOR) * 2 - 1
NOISE = torch.randn(8, 3, 4, 4, generator=GENERATOR)


def test_the_discretised_likelihood_sums_to_one_over_the_grey_levels() -> None:
    grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, log_scale in [(0.0, -2.0), (-0.97, -3.0), (0.99, 0.5)]:
        log_p = discretized_gaussian_log_likelihood(grey, torch.full_like(grey, mean), torch.full_like(grey, log_scale))
        torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-8, rtol=0)


def test_kl_of_equal_gaussians_is_zero_and_else_that_of_the_textbook() -> None:
    mean, log_variance = torch.randn(100, generator=GENERATOR), torch.randn(100, generator=GENERATOR)
    assert normal_kl(mean, log_variance, mean, log_variance).abs().max() < 1e-6
    ours = normal_kl(mean, log_variance, mean + 0.3, 0.5 * log_variance)
    normal = torch.distributions.Normal
    first, second = normal(mean, (0.5 * log_variance).exp()), normal(mean + 0.3, (0.25 * log_variance).exp())
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(first, second))


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small", "fixed_large"])
def test_the_bound_is_smallest_for_the_true_image(variance: str) -> None:
    options = DiffusionOptions(variance=variance)  # type: ignore[arg-type]
    level, _ = PROCESS.levels(T, X0)
    x_t = q_sample(X0, NOISE, level)
    output = None
    if variance.startswith("learned"):
        start = torch.zeros(8) if variance == "learned_range" else PROCESS.posterior_log_variance[T].float()
        output = start.view(-1, 1, 1, 1).expand_as(X0).clone().requires_grad_()
    log_variance = losses.step_log_variance(PROCESS, options, output, T, X0)
    true = losses.variational_bound(PROCESS, X0, X0, log_variance, x_t, T)
    wrong = losses.variational_bound(PROCESS, X0, X0 + 0.5, log_variance, x_t, T)
    assert (true < wrong).all()
    if variance == "fixed_small":
        assert true.abs().max() < 1e-6
    if output is not None:
        wrong.sum().backward()
        assert output.grad is not None and output.grad.abs().sum() > 0


def test_learned_range_lies_between_the_fixed_variances_and_learned_is_free() -> None:
    def log_variance(variance: str, output: float = 0.0) -> torch.Tensor:
        options = DiffusionOptions(variance=variance)  # type: ignore[arg-type]
        return losses.step_log_variance(PROCESS, options, torch.full_like(X0, output), T, X0)[:, 0, 0, 0].expand(8)

    torch.testing.assert_close(log_variance("learned_range", -1.0), log_variance("fixed_small"))
    torch.testing.assert_close(log_variance("learned_range", 1.0), PROCESS.beta.log()[T].float())
    torch.testing.assert_close(log_variance("fixed_large"), PROCESS.beta.log()[T].float())
    assert (log_variance("learned", -3.5) == -3.5).all()


@pytest.mark.parametrize("weighting", ["min_snr", "edm"])
def test_a_weight_is_of_the_images_error_whatever_is_predicted(weighting: str) -> None:
    """One error of the image, told by each prediction, costs the same."""
    objective = ObjectiveOptions(weighting=weighting)  # type: ignore[arg-type]
    level, _ = PROCESS.levels(T, X0)
    x_t, guessed = q_sample(X0, NOISE, level), X0 + 0.1 * NOISE.flip(0)
    guessed_noise = noise_of(x_t, guessed, level.alpha, level.sigma)
    plain, costs = {}, {}
    for prediction in ("eps", "x0", "mean", "v", "edm"):
        options = DiffusionOptions(prediction=prediction, sigma_data=0.4)  # type: ignore[arg-type]
        true = target(options, X0, NOISE, level)
        output = target(options, guessed, guessed_noise, level)
        plain[prediction] = losses.simple(output, true)
        costs[prediction] = losses.snr_weight(objective, options, level) * plain[prediction]
    for prediction in ("eps", "mean", "v", "edm"):
        torch.testing.assert_close(costs[prediction], costs["x0"], rtol=2e-3, atol=0)
    if weighting == "edm":
        # EDM's loss is the plain squared error of its network's output (arXiv 2206.00364, equation 8).
        torch.testing.assert_close(plain["edm"], costs["x0"], rtol=2e-3, atol=0)


@pytest.mark.parametrize(("mean", "std", "sigma_data"), [(0.0, 0.5, 0.5), (0.3, 0.5, 0.5), (0.3, 0.2, 0.5)])
def test_edms_loss_of_the_exact_network_is_its_minimum(mean: float, std: float, sigma_data: float) -> None:
    """lambda times the posterior's variance of a Gaussian target: 1 at every noise level if sigma_data is its own."""
    options = DiffusionOptions(prediction="edm", sigma_data=sigma_data)
    generator = torch.Generator().manual_seed(1)
    x0 = mean + std * torch.randn(8, 3, 32, 32, generator=generator)
    noise = torch.randn(8, 3, 32, 32, generator=generator)
    level, _ = PROCESS.levels(T, x0)
    sigma = torch.as_tensor(level.sigma) / torch.as_tensor(level.alpha)
    x = x0 + sigma * noise
    denoised = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    exact = (denoised - skip * x) / (sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt())
    found = losses.simple(exact, target(options, x0, noise, level))
    known = (sigma**2 + sigma_data**2) / (sigma_data**2 * (std**2 + sigma**2)) * std**2
    torch.testing.assert_close(found, known.flatten(), rtol=0.1, atol=0)
    for wrong in (exact + 0.3, exact - 0.3):
        assert (losses.simple(wrong, target(options, x0, noise, level)) > found).all()


def test_the_weights_are_the_papers() -> None:
    level, _ = PROCESS.levels(T, X0)
    bar = PROCESS.alpha_bar[T]
    snr = (bar / (1 - bar)).float()
    assert losses.snr_weight(ObjectiveOptions(), DiffusionOptions(), level) == 1.0
    # arXiv 2303.09556: min(SNR, gamma) of x0, over SNR of the noise, over SNR + 1 of v.
    min_snr = ObjectiveOptions(weighting="min_snr", min_snr_gamma=3.0)
    capped = snr.clamp(max=3)
    for prediction, expected in [("x0", capped), ("eps", capped / snr), ("v", capped / (snr + 1))]:
        options = DiffusionOptions(prediction=prediction)  # type: ignore[arg-type]
        torch.testing.assert_close(losses.snr_weight(min_snr, options, level), expected)
    # arXiv 2206.00364, table 1: (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 of the image's error.
    edm, sigma, data = ObjectiveOptions(weighting="edm"), snr**-0.5, 0.4
    options = DiffusionOptions(prediction="x0", sigma_data=data)
    torch.testing.assert_close(losses.snr_weight(edm, options, level), (sigma**2 + data**2) / (sigma * data) ** 2)
