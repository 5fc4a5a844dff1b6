"""Guidance and samplers against closed forms: a Gaussian target has an exact denoiser, score and classifier."""

import dataclasses
import math

import pytest
import torch

from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.denoiser import Prediction, clipped, from_eps, model_denoiser
from dist_diffusion.diffusion.guidance import classifier_free, classifier_gradient, guided_by_model, score_shifted
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, target
from dist_diffusion.diffusion.schedules import sampling_levels

MEAN, STD = 0.3, 0.5
OPTIONS = DiffusionOptions(variance="fixed_small")
LEVELS = {int(level.model_time): level for level in sampling_levels(OPTIONS, "1000")[:-1]}


def gaussian_eps(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """E[eps | x_t] for x0 ~ N(MEAN, STD^2)."""
    level = LEVELS[int(time[0])]
    variance = (level.alpha * STD) ** 2 + level.sigma**2
    return level.sigma / variance * (x - level.alpha * MEAN)


def exact(x: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
    """The same as a denoiser, at any level."""
    variance = (level.alpha * STD) ** 2 + level.sigma**2
    eps = level.sigma / variance * (x - level.alpha * MEAN)
    return from_eps(x, level, eps, torch.tensor(level.log_posterior_variance))


CONTINUOUS = sampling_levels(DiffusionOptions(schedule="log_snr", variance="fixed_small"), "400")


def noise_of(seed: int, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def test_ddim_maps_noise_to_the_gaussian_target_exactly() -> None:
    """The probability flow of a Gaussian is linear: x_0 = MEAN + STD z, up to the discretisation."""
    noise = noise_of(0, (1, 1, 1, 64))
    z = noise()
    levels = sampling_levels(OPTIONS, "1000")
    x = samplers.ddim(model_denoiser(gaussian_eps, OPTIONS), levels, z, noise, None)
    start = levels[0]
    scale = math.sqrt((start.alpha * STD) ** 2 + start.sigma**2)
    torch.testing.assert_close(x, MEAN + STD * (z - start.alpha * MEAN) / scale, atol=8e-3, rtol=0)


def test_ddim_in_continuous_time_maps_noise_to_the_gaussian_target() -> None:
    z = noise_of(0, (1, 1, 1, 64))()
    x = samplers.ddim(exact, CONTINUOUS, z, noise_of(0, z.shape), None)
    torch.testing.assert_close(x, MEAN + STD * z, atol=8e-3, rtol=0)


def test_ancestral_sampling_in_continuous_time_has_the_targets_moments() -> None:
    noise = noise_of(1, (1, 1, 1, 20_000))
    x = samplers.ddpm(exact, CONTINUOUS, noise(), noise, None)
    assert abs(x.mean() - MEAN) < 0.02 and abs(x.std() - STD) < 0.02


@pytest.mark.parametrize("levels", [sampling_levels(OPTIONS, "1000"), CONTINUOUS], ids=["discrete", "continuous"])
def test_decoding_what_ddim_encoded_returns_the_image(levels: list[Level]) -> None:
    """An exact network's probability flow is walked in both directions."""
    image = MEAN + STD * noise_of(3, (1, 1, 1, 64))()
    latent = samplers.ddim_encode(exact, levels, image, None)
    assert abs(latent.std() - 1) < 0.2 and (latent - image).abs().max() > 0.5
    again = samplers.ddim(exact, levels, latent, noise_of(0, image.shape), None)
    torch.testing.assert_close(again, image, atol=0.02, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_stochastic_samplers_have_the_targets_moments(sampler: str) -> None:
    noise = noise_of(1, (1, 1, 1, 20_000))
    levels, denoiser = sampling_levels(OPTIONS, "1000"), model_denoiser(gaussian_eps, OPTIONS)
    if sampler == "ddpm":
        x = samplers.ddpm(denoiser, levels, noise(), noise, None)
    else:
        x = samplers.ddim(denoiser, levels, noise(), noise, None, eta=1.0)
    assert abs(x.mean() - MEAN) < 0.02 and abs(x.std() - STD) < 0.02


def test_ddim_with_eta_one_is_ancestral_sampling() -> None:
    """At eta = 1 a DDIM step is the DDPM step with the posterior's variance (arXiv 2010.02502, section 4.1)."""
    levels, denoiser = sampling_levels(OPTIONS, "50"), model_denoiser(gaussian_eps, OPTIONS)
    first, second = noise_of(2, (4, 1, 2, 2)), noise_of(2, (4, 1, 2, 2))
    # The last step differs: DDIM's has no noise because its sigma is 0, DDPM's because it is the last.
    a = samplers.ddpm(denoiser, levels, first(), first, None)
    b = samplers.ddim(denoiser, levels, second(), second, None, eta=1.0)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def labelled_model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    shift = torch.zeros(len(x)) if labels is None else labels.float()
    eps = 0.5 * x + shift.view(-1, 1, 1, 1)
    return torch.cat([eps, torch.tanh(eps)], dim=1)


LEARNED = DiffusionOptions()
LEVEL = sampling_levels(LEARNED, "10")[4]


def test_classifier_free_scale_1_is_conditional_and_0_unconditional() -> None:
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3])
    conditional = denoiser(x, LEVEL, labels)
    unconditional = denoiser(x, LEVEL, torch.tensor([10, 10, 10]))
    for scale, expected in [(1.0, conditional.eps), (0.0, unconditional.eps)]:
        made = classifier_free(denoiser, scale, null_label=10)(x, LEVEL, labels)
        torch.testing.assert_close(made.eps, expected)
        assert made.log_variance is not None and conditional.log_variance is not None
        torch.testing.assert_close(made.log_variance, conditional.log_variance)
    between = classifier_free(denoiser, 3.0, null_label=10)(x, LEVEL, labels)
    torch.testing.assert_close(between.eps, 3 * conditional.eps - 2 * unconditional.eps)


def test_a_separate_unconditional_model_is_mixed_alike() -> None:
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    made = guided_by_model(denoiser, denoiser, 2.0)(x, LEVEL, labels)
    expected = 2 * denoiser(x, LEVEL, labels).eps - denoiser(x, LEVEL, None).eps
    torch.testing.assert_close(made.eps, expected)


def test_an_exact_classifier_turns_the_unconditional_model_into_the_conditional() -> None:
    """Bayes: score(x|y) = score(x) + grad log p(y|x), so score-form guidance of scale 1 gives the conditional eps."""
    means = torch.tensor([-0.8, 0.8])
    level = Level(alpha=0.8, sigma=0.6, model_time=0.0)
    variance = (level.alpha * STD) ** 2 + level.sigma**2

    def log_joint(x: torch.Tensor) -> torch.Tensor:
        return -((x.flatten(1) - level.alpha * means) ** 2) / (2 * variance)

    def classifier(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return log_joint(x)

    def unconditional(x: torch.Tensor, at: Level, labels: torch.Tensor | None) -> Prediction:
        with torch.enable_grad():
            held = x.detach().requires_grad_()
            (score,) = torch.autograd.grad(torch.logsumexp(log_joint(held), dim=1).sum(), held)
        return from_eps(x, at, -at.sigma * score, None)

    x, labels = torch.linspace(-2, 2, 9).view(-1, 1, 1, 1), torch.tensor([0, 1] * 4 + [0])
    guided = score_shifted(unconditional, classifier_gradient(classifier, 1.0))(x, level, labels)
    exact = level.sigma / variance * (x - level.alpha * means[labels].view(-1, 1, 1, 1))
    torch.testing.assert_close(guided.eps, exact)


def test_clipping_keeps_x_t_consistent() -> None:
    denoiser, x = clipped(model_denoiser(labelled_model, LEARNED)), 3 * torch.randn(2, 3, 4, 4)
    x0, eps, _ = denoiser(x, LEVEL, torch.tensor([0, 1]))
    assert x0.abs().max() <= 1
    torch.testing.assert_close(LEVEL.alpha * x0 + LEVEL.sigma * eps, x)


def test_a_v_network_is_the_same_denoiser_as_its_eps_twin() -> None:
    """v = alpha eps - sigma x0 says the same as eps about x_t."""

    def v_model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        eps, rest = labelled_model(x, time, labels).chunk(2, dim=1)
        x0 = (x - LEVEL.sigma * eps) / LEVEL.alpha
        return torch.cat([target("v", x0, eps, Coefficients(LEVEL.alpha, LEVEL.sigma)), rest], dim=1)

    x, labels = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    ours = model_denoiser(v_model, dataclasses.replace(LEARNED, prediction="v"))(x, LEVEL, labels)
    twin = model_denoiser(labelled_model, LEARNED)(x, LEVEL, labels)
    for made, expected in zip(ours, twin, strict=True):
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
