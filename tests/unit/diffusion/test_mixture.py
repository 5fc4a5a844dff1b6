"""Guidance and samplers with exact networks, on a Gaussian mixture whose guided scores and samples are known."""

import dataclasses
import functools
import math
import statistics
from itertools import pairwise

import pytest
import torch
from unit.diffusion.mixture import FLAT, IMAGES, Mixture
from unit.diffusion.walks import DETERMINISTIC, STOCHASTIC, no_noise, noise_of

from dist_diffusion.diffusion import samplers
from dist_diffusion.diffusion.denoiser import Denoiser, Prediction, model_denoiser
from dist_diffusion.diffusion.gaussians import posterior_mean
from dist_diffusion.diffusion.guidance import (
    Gradient,
    classifier_gradient,
    guided,
    linear,
    null_label_pair,
    score_shifted,
    two_models_pair,
)
from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.spacing import sampler_levels

CONTINUOUS = DiffusionOptions(schedule="log_snr", variance="fixed_small")
LINEAR = DiffusionOptions(variance="fixed_small")
TARGETS = pytest.mark.parametrize("target", [FLAT, IMAGES], ids=["flat", "images"])


def path(steps: int, spacing: str = "karras") -> list[Level]:
    return sampler_levels(CONTINUOUS, SamplerOptions(steps=str(steps), spacing=spacing))  # type: ignore[arg-type]


def unconditional(target: Mixture) -> Denoiser:
    """The exact network of a model without labels."""
    denoiser = target.denoiser()
    return lambda x_t, level, labels: denoiser(x_t, level, None)


def by_classifier(target: Mixture, denoiser: Denoiser, scale: float, levels: list[Level]) -> Denoiser:
    return score_shifted(denoiser, classifier_gradient(target.classifier(levels), scale))


def classifier_free(target: Mixture, scale: float) -> Denoiser:
    return guided(null_label_pair(target.denoiser(), target.num_classes), linear(scale))


def noised(target: Mixture, level: Level, labels: torch.Tensor) -> torch.Tensor:
    """x_t of images of these labels."""
    noise = noise_of(1, (len(labels), *target.shape))()
    return level.alpha * target.sample(len(labels), 0, labels) + level.sigma * noise


@TARGETS
def test_mixture_scores_are_the_gradients_of_its_densities(target: Mixture) -> None:
    """Of log p(x_t) + s log p(y | x_t) for s of 0 and 1, by autograd: the closed forms are right, and so is Bayes."""
    labels = torch.arange(30) % target.num_classes
    for level in path(6)[:-1]:
        x = noised(target, level, labels)
        torch.testing.assert_close(target.score(x, level), target.guided_score(x, level, labels, 0))
        torch.testing.assert_close(target.score(x, level, labels), target.guided_score(x, level, labels, 1))


@pytest.mark.parametrize("label", [None, 0, 1, 2])
def test_mixture_density_is_one_and_its_samples_follow_it(label: int | None) -> None:
    axis = torch.linspace(-2.5, 2.5, 301, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    labels = None if label is None else torch.full((len(grid),), label)
    share = FLAT.log_density(grid, CLEAN, labels).exp() * (axis[1] - axis[0]) ** 2
    assert share.sum().item() == pytest.approx(1, abs=1e-3)
    drawn = FLAT.sample(5000, 0, None if labels is None else labels[:5000]).flatten(1)
    mean = (share[:, None] * grid.flatten(1)).sum(0)
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.03, rtol=0)


@TARGETS
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, 10.0])
def test_mixture_classifier_and_classifier_free_guidance_are_the_guided_score(target: Mixture, scale: float) -> None:
    """Scale s on the unconditional model; on the conditional one, which has one share already, s - 1."""
    levels = path(8)
    labels = torch.arange(30) % target.num_classes
    for level in levels[:-1]:
        x = noised(target, level, labels)
        eps = -level.sigma * target.guided_score(x, level, labels, scale)
        for denoiser in (
            classifier_free(target, scale),
            by_classifier(target, unconditional(target), scale, levels),
            by_classifier(target, target.denoiser(), scale - 1, levels),
            guided(two_models_pair(target.denoiser(), unconditional(target), True), linear(scale)),
        ):
            found = denoiser(x, level, labels)
            torch.testing.assert_close(found.eps, eps, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, x)


@TARGETS
@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_mixture_guidances_end_alike_in_every_deterministic_sampler(target: Mixture, name: str, scale: float) -> None:
    """Classifier guidance of the unconditional model by s, of the conditional one by s - 1, classifier-free by s."""
    levels, labels = path(20), torch.arange(24) % target.num_classes
    x_t = noise_of(2, (24, *target.shape))()

    def end(denoiser: Denoiser) -> torch.Tensor:
        return DETERMINISTIC[name](denoiser, levels, x_t, no_noise, labels)

    analytic = end(target.guided(scale))
    for denoiser in (
        classifier_free(target, scale),
        by_classifier(target, unconditional(target), scale, levels),
        by_classifier(target, target.denoiser(), scale - 1, levels),
    ):
        torch.testing.assert_close(end(denoiser), analytic, atol=1e-5, rtol=0)
    assert (analytic - end(target.guided(scale + 1))).abs().max() > 0.05
    right = target.log_posterior(analytic, CLEAN).exp()[torch.arange(24), labels]
    assert right.mean() > 0.9


def test_mixture_both_guidances_add_up() -> None:
    """Classifier-free by s and the classifier by r lead as one guidance of s + r."""
    levels, labels = path(8), torch.arange(30) % 3
    level = levels[3]
    x = noised(FLAT, level, labels)
    both = by_classifier(FLAT, classifier_free(FLAT, 2.5), 1.5, levels)(x, level, labels)
    torch.testing.assert_close(both.eps, classifier_free(FLAT, 4.0)(x, level, labels).eps, atol=1e-5, rtol=1e-5)
    parts = [classifier_free(FLAT, 2.5), by_classifier(FLAT, unconditional(FLAT), 1.5, levels), unconditional(FLAT)]
    free, shifted, none = (part(x, level, labels).eps for part in parts)
    torch.testing.assert_close(both.eps, free + shifted - none, atol=1e-5, rtol=1e-5)


def test_mixture_classifier_temperature_is_that_of_the_posterior() -> None:
    """Logits over tau are the posterior p(y | x)^(1 / tau), normalised."""
    levels, labels, tau = path(8), torch.arange(30) % 3, 2.5
    for level in levels[2:-1]:
        x = noised(FLAT, level, labels).requires_grad_()
        tempered = FLAT.log_posterior(x, level).exp() ** (1 / tau)
        log_p = (tempered[torch.arange(30), labels] / tempered.sum(1)).log().sum()
        (expected,) = torch.autograd.grad(2 * log_p, x)
        gradient = classifier_gradient(FLAT.classifier(levels), 2.0, temperature=tau)(x, level, labels)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def mean_of_step(
    denoiser: Denoiser,
    step: tuple[Level, Level],
    x: torch.Tensor,
    labels: torch.Tensor,
    mean_shift: Gradient | None = None,
) -> torch.Tensor:
    """The mean of one ancestral step."""
    return samplers.ddpm(denoiser, step, x, lambda: torch.zeros_like(x), labels, mean_shift)


@pytest.mark.parametrize("variance", ["log_posterior_variance", "log_large_variance"])
def test_mixture_algorithm_1_shifts_the_mean_by_sigma_s_g(variance: str) -> None:
    """Sigma the variance of the step, g the exact gradient at x_t (arXiv 2105.05233)."""
    levels, labels, scale = sampling_levels(LINEAR, "25"), torch.arange(30) % 3, 3.0
    denoiser = with_variance(FLAT.denoiser(), variance)
    gradient = classifier_gradient(FLAT.classifier(levels), scale)
    for step in pairwise(levels):
        x = noised(FLAT, step[0], labels)
        plain = mean_of_step(denoiser, step, x, labels)
        shifted = mean_of_step(denoiser, step, x, labels, gradient)
        exact = FLAT.guided_score(x, step[0], labels, scale) - FLAT.score(x, step[0])
        torch.testing.assert_close(shifted - plain, math.exp(getattr(step[0], variance)) * exact, atol=1e-6, rtol=1e-5)
        prediction = denoiser(x, step[0], labels)
        torch.testing.assert_close(plain, posterior_mean(prediction.x0, x, *step))


def with_variance(denoiser: Denoiser, name: str) -> Denoiser:
    """The same with another one of a level's variances for its step."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        log_variance = torch.tensor(getattr(level, name), dtype=torch.float64)
        return denoiser(x_t, level, labels)._replace(log_variance=log_variance)

    return denoise


RATIOS = {25: (1.23, 1.38), 50: (1.10, 1.16), 100: (1.05, 1.08), 250: (1.02, 1.03)}
"""The median over a path's steps of beta / sqrt(1 - beta) to Sigma: Sigma being beta, and the posterior's variance."""


@pytest.mark.parametrize("num", RATIOS)
def test_mixture_score_form_moves_a_step_further_than_algorithm_1(num: int) -> None:
    """In one direction: by beta / sqrt(1 - beta) s g, where Algorithm 1 moves its mean by Sigma s g."""
    *levels, _ = sampling_levels(LINEAR, str(num))
    labels, gradient = torch.arange(30) % 3, classifier_gradient(FLAT.classifier(levels), 2.0)
    for variance, expected in zip(("log_large_variance", "log_posterior_variance"), RATIOS[num], strict=True):
        denoiser, ratios = with_variance(FLAT.denoiser(), variance), []
        for step in list(pairwise(levels))[:: num // 25]:
            x = noised(FLAT, step[0], labels)
            plain = mean_of_step(denoiser, step, x, labels)
            shift = mean_of_step(denoiser, step, x, labels, gradient) - plain
            in_score = mean_of_step(score_shifted(denoiser, gradient), step, x, labels) - plain
            ratios.append((in_score.norm() / shift.norm()).item())
            torch.testing.assert_close(in_score, ratios[-1] * shift, atol=1e-5, rtol=1e-4)
        assert min(ratios) > 1 and statistics.median(ratios) == pytest.approx(expected, abs=0.015)


def test_mixture_algorithm_1_approaches_the_score_form_with_the_number_of_steps() -> None:
    """The samples' distance, with the same noise, is of first order in the length of a step."""
    labels = torch.arange(96) % 3
    x_t, distances = noise_of(3, (96, *FLAT.shape))(), []
    for num in (25, 50, 100):
        *levels, _ = sampling_levels(LINEAR, str(num))
        gradient = classifier_gradient(FLAT.classifier(levels), 2.0)
        ends = [
            samplers.ddpm(FLAT.denoiser(), levels, x_t, noise_of(4, x_t.shape), labels, gradient),
            samplers.ddpm(score_shifted(FLAT.denoiser(), gradient), levels, x_t, noise_of(4, x_t.shape), labels),
        ]
        distances.append((ends[0] - ends[1]).flatten(1).norm(dim=1).median().item())
    assert distances[0] / distances[1] > 1.7 and distances[1] / distances[2] > 1.7, distances
    assert distances[2] < 0.01


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_mixture_ancestral_sampling_in_log_snr_is_the_papers_algorithm_2(mix: float) -> None:
    """Of arXiv 2207.12598, written out in lambda, with w = s - 1 and the interpolation v of the variances."""
    options = dataclasses.replace(CONTINUOUS, variance="fixed_mix", variance_mix=mix)
    levels, labels, w = sampling_levels(options, "20"), torch.arange(30) % 3, 1.5
    model = FLAT.network(options, levels)
    free = guided(null_label_pair(model_denoiser(model, options), FLAT.num_classes), linear(1 + w))
    noise = noise_of(5, (30, *FLAT.shape))
    ours = samplers.ddpm(free, levels, noise(), noise, labels)

    noise = noise_of(5, (30, *FLAT.shape))
    z = noise()
    b = math.atan(math.exp(-20 / 2))
    a = math.atan(math.exp(20 / 2)) - b
    lambdas = [-2 * math.log(math.tan(a * u / 19 + b)) for u in range(19, -1, -1)]
    for i, lam in enumerate(lambdas):
        alpha, sigma = (1 / (1 + math.exp(-lam))) ** 0.5, (1 / (1 + math.exp(lam))) ** 0.5
        at = Level(alpha, sigma, 0.0)
        eps = -sigma * ((1 + w) * FLAT.score(z, at, labels) - w * FLAT.score(z, at))
        x = (z - sigma * eps) / alpha
        if i + 1 == len(lambdas):
            break
        following = lambdas[i + 1]
        ratio = math.exp(lam - following)
        alpha_to = (1 / (1 + math.exp(-following))) ** 0.5
        mean = ratio * (alpha_to / alpha) * z + (1 - ratio) * alpha_to * x
        variance = ((1 - ratio) / (1 + math.exp(following))) ** (1 - mix) * ((1 - ratio) * sigma**2) ** mix
        z = mean + variance**0.5 * noise()
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


SAMPLERS = {**DETERMINISTIC, **STOCHASTIC}
NUM_STEPS = {"heun": 30, "dpmpp_2m": 40, "unipc": 30, "dpmpp_sde": 80}


@pytest.mark.parametrize("name", SAMPLERS)
def test_mixture_samples_are_of_the_target(name: str) -> None:
    """With each label and with none: mean, covariance, shares of the classes, and the mean log density, which a width
    that is 10 % off would move by 0.2.
    """
    labels = torch.arange(4).repeat_interleave(1000)
    noise = noise_of(6, (len(labels), *FLAT.shape))
    x = SAMPLERS[name](FLAT.denoiser(), path(NUM_STEPS.get(name, 120)), noise(), noise, labels)
    for label, ours in enumerate(x.chunk(4)):
        found = zip(moments(ours, label), true_moments(label), (0.06, 0.03, 0.05, 0.14), strict=True)
        for moment, expected, tolerance in found:
            torch.testing.assert_close(moment, expected, atol=tolerance, rtol=0)


def moments(x: torch.Tensor, label: int) -> tuple[torch.Tensor, ...]:
    flat, labels = x.flatten(1), torch.full((len(x),), label)
    shares = FLAT.log_posterior(x, CLEAN).exp().mean(0)
    return flat.mean(0), flat.T.cov(), shares, FLAT.log_density(x, CLEAN, labels).mean()


@functools.cache
def true_moments(label: int) -> tuple[torch.Tensor, ...]:
    return moments(FLAT.sample(50_000, 7, torch.full((50_000,), label)), label)


def test_mixture_ddim_returns_what_it_encoded() -> None:
    """To first order in the number of steps."""
    labels = torch.arange(60) % 4
    images = FLAT.sample(60, 8, labels)
    errors = []
    for num in (100, 200, 400):
        levels = path(num, "log_snr")
        latent = samplers.ddim_encode(FLAT.denoiser(), levels, images, labels)
        assert abs(latent.std() - 1) < 0.2 and (latent - images).abs().max() > 0.5
        again = samplers.ddim(FLAT.denoiser(), levels, latent, no_noise, labels)
        errors.append((again - images).pow(2).mean().sqrt().item())
    assert errors[-1] < 0.01 and errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7, errors
