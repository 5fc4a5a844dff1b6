"""Guidance: what each transform does to a prediction, and what it costs."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from unit.diffusion.mixture import IMAGES
from unit.diffusion.walks import no_noise, noise_of

from dist_diffusion.diffusion import samplers, solvers
from dist_diffusion.diffusion.denoiser import Denoiser, Prediction, clipped, from_x0, model_denoiser
from dist_diffusion.diffusion.guidance import (
    Rule,
    classifier_gradient,
    guided,
    in_interval,
    linear,
    null_label_pair,
    projected,
    renoised,
    rescaled,
    score_shifted,
    two_models_pair,
    within,
)
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.spacing import sampler_levels

LEARNED = DiffusionOptions()
LEVEL = sampling_levels(LEARNED, "10")[4]
NULL = 10


def labelled_model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    shift = torch.zeros(len(x)) if labels is None else labels.float()
    eps = 0.5 * x + shift.view(-1, 1, 1, 1)
    return torch.cat([eps, torch.tanh(eps)], dim=1)


def counted(denoiser: Denoiser, rows: list[int]) -> Denoiser:
    """The same denoiser, which appends to `rows` how many images each call is given."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        rows.append(len(x_t))
        return denoiser(x_t, level, labels)

    return denoise


def test_classifier_free_scale_1_is_conditional_and_0_unconditional() -> None:
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3])
    conditional = denoiser(x, LEVEL, labels)
    unconditional = denoiser(x, LEVEL, torch.tensor([NULL] * 3))
    for scale, expected in [
        (1.0, conditional.eps),
        (0.0, unconditional.eps),
        (3.0, 3 * conditional.eps - 2 * unconditional.eps),
    ]:
        made = guided(null_label_pair(denoiser, NULL), linear(scale))(x, LEVEL, labels)
        torch.testing.assert_close(made.eps, expected)


@pytest.mark.parametrize("variance", ["learned_range", "learned", "fixed_small"])
def test_one_forward_pass_over_both_halves_is_two(variance: str) -> None:
    """And the learned variance is the conditional half's."""
    options = dataclasses.replace(LEARNED, variance=variance)
    rows: list[int] = []

    def model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        rows.append(len(x))
        output = labelled_model(x, time, labels)
        return output[:, :3] if variance == "fixed_small" else output

    denoiser, x, labels = model_denoiser(model, options), torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3])
    prediction, reference = null_label_pair(denoiser, NULL)(x, LEVEL, labels)
    assert rows == [6]
    for made, given in ((prediction, labels), (reference, torch.full_like(labels, NULL))):
        alone = denoiser(x, LEVEL, given)
        torch.testing.assert_close((made.x0, made.eps), (alone.x0, alone.eps))
    torch.testing.assert_close(prediction.log_variance, denoiser(x, LEVEL, labels).log_variance)
    made = guided(null_label_pair(denoiser, NULL), linear(4.0))(x, LEVEL, labels)
    torch.testing.assert_close(made.log_variance, prediction.log_variance)


def test_a_separate_unconditional_model_is_given_no_labels() -> None:
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    made = guided(two_models_pair(denoiser, denoiser, reference_has_labels=False), linear(2.0))(x, LEVEL, labels)
    torch.testing.assert_close(made.eps, 2 * denoiser(x, LEVEL, labels).eps - denoiser(x, LEVEL, None).eps)


def test_autoguidance_by_a_model_that_knows_no_labels_is_classifier_free_guidance() -> None:
    """And a weaker one is given the labels."""
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(2, 3, 4, 4), torch.tensor([1, 2])
    given = []

    def null(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        assert labels is not None
        given.append(labels)
        return denoiser(x_t, level, torch.full_like(labels, NULL))

    made = guided(two_models_pair(denoiser, null, reference_has_labels=True), linear(2.5))(x, LEVEL, labels)
    expected = guided(null_label_pair(denoiser, NULL), linear(2.5))(x, LEVEL, labels)
    torch.testing.assert_close(made[:3], expected[:3])
    assert given[0].tolist() == [1, 2]


def test_outside_of_the_interval_the_unconditional_half_is_skipped() -> None:
    """Low is outside, high inside; what is skipped is not evaluated."""
    rows: list[int] = []
    levels = sampling_levels(DiffusionOptions(), "10")
    plain = counted(IMAGES.denoiser(), rows)
    made = guided(null_label_pair(plain, IMAGES.num_classes), linear(3.0))
    interval = (levels[7].edm_sigma, levels[3].edm_sigma)
    x, labels = noise_of(0, (4, *IMAGES.shape))(), torch.arange(4) % 3
    limited = within(interval, made, plain)
    for i, level in enumerate(levels[:-1]):
        inside = i in (3, 4, 5, 6)
        assert in_interval(level, interval) == inside
        rows.clear()
        found = limited(x, level, labels)
        assert rows == [8 if inside else 4]
        torch.testing.assert_close(found.eps, (made if inside else plain)(x, level, labels).eps)


def test_the_interval_is_not_missed_by_rounding() -> None:
    """A path that begins at sigma_max begins inside of an interval that ends there, and one at low outside."""
    for sigma in np.linspace(0.5, 80, 200):
        at = Level(alpha=1 / math.hypot(1, sigma), sigma=sigma / math.hypot(1, sigma), model_time=0.0)
        assert in_interval(at, (0.0, float(sigma))) and not in_interval(at, (float(sigma), 100.0))


def apart(x: torch.Tensor) -> torch.Tensor:
    """The Euclidean norm of each image."""
    return x.flatten(1).norm(dim=1)


STEPS = sampler_levels(DiffusionOptions(schedule="log_snr"), SamplerOptions(steps="12", spacing="karras"))
X = noise_of(1, (6, *IMAGES.shape))()
LABELS = torch.arange(6) % 3
PAIR = null_label_pair(IMAGES.denoiser(), IMAGES.num_classes)


def both(level: Level) -> tuple[Prediction, Prediction]:
    return PAIR(X, level, LABELS)


def test_projected_guidance_without_its_settings_is_linear() -> None:
    for level in STEPS[:-1]:
        prediction, reference = both(level)
        made = projected(3.0, eta=1.0, norm=None, momentum=0.0)(X, level, prediction, reference)
        torch.testing.assert_close(made[:3], linear(3.0)(X, level, prediction, reference)[:3])
        torch.testing.assert_close(level.alpha * made.x0 + level.sigma * made.eps, X)


@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_projected_guidance_has_eta_of_what_is_parallel_to_the_image(eta: float) -> None:
    """At 0 the image is moved across itself alone."""
    for level in STEPS[:-1]:
        prediction, reference = both(level)
        update = projected(3.0, eta, None, 0.0)(X, level, prediction, reference).x0 - prediction.x0
        difference, direction = prediction.x0 - reference.x0, prediction.x0 / apart(prediction.x0).view(-1, 1, 1, 1)
        along = (difference * direction).sum((1, 2, 3))
        torch.testing.assert_close((update * direction).sum((1, 2, 3)), 2 * eta * along)
        torch.testing.assert_close(update, 2 * (difference - (1 - eta) * along.view(-1, 1, 1, 1) * direction))


def test_projected_guidance_is_bounded_by_its_norm() -> None:
    level = STEPS[5]
    prediction, reference = both(level)
    lengths = apart(prediction.x0 - reference.x0)
    bound = lengths.median().item()
    found = apart(projected(3.0, 1.0, bound, 0.0)(X, level, prediction, reference).x0 - prediction.x0)
    torch.testing.assert_close(found, 2 * lengths.clamp(max=bound))
    assert (lengths > bound).any() and (lengths < bound).any()


def test_projected_guidance_remembers_with_its_momentum() -> None:
    """A difference counts with beta times the one before, which has beta times the one before that in it."""
    rule, sums = projected(3.0, 1.0, None, -0.5), torch.zeros_like(X)
    for level in STEPS[:-1]:
        prediction, reference = both(level)
        sums = prediction.x0 - reference.x0 - 0.5 * sums
        torch.testing.assert_close(rule(X, level, prediction, reference).x0, prediction.x0 + 2 * sums)


def test_guidance_of_two_estimates_that_agree_is_nothing() -> None:
    """Of images that are zero, too, whose direction there is none of."""
    for x0 in (X, torch.zeros_like(X)):
        same = from_x0(X, LEVEL, x0, None)
        for rule in (linear(5.0), projected(5.0, 0.0, 1.0, -0.5)):
            torch.testing.assert_close(rule(X, LEVEL, same, same)[:2], same[:2])


@pytest.mark.parametrize("rule", [linear(4.0), projected(4.0, 0.5, None, 0.0)], ids=["linear", "projected"])
def test_rescaling_restores_the_contrast(rule: Rule) -> None:
    for level in STEPS[:-1]:
        prediction, reference = both(level)
        plain = rule(X, level, prediction, reference)
        stds = [x0.flatten(1).std(1) for x0 in (prediction.x0, plain.x0)]
        for share in (0.0, 0.7, 1.0):
            made = rescaled(rule, share)(X, level, prediction, reference)
            torch.testing.assert_close(made.x0.flatten(1).std(1), share * stds[0] + (1 - share) * stds[1])
            torch.testing.assert_close(level.alpha * made.x0 + level.sigma * made.eps, X)
            cosine = torch.cosine_similarity(made.x0.flatten(1), plain.x0.flatten(1))
            torch.testing.assert_close(cosine, torch.ones(6, dtype=torch.float64))
        assert not torch.allclose(*stds)


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_cfg_plus_plus_is_noised_again_without_the_condition(sampler: str, scale: float) -> None:
    """arXiv 2406.08070, Algorithm 2, by hand: x0 of the mixed noise, and the unconditional noise."""
    exact, x = IMAGES.denoiser(), X
    denoiser = guided(PAIR, renoised(linear(scale)))
    if sampler == "ddim":
        found = samplers.ddim(denoiser, STEPS, X, no_noise, LABELS)
    else:
        found = solvers.euler(denoiser, STEPS, X, no_noise, LABELS, STEPS[:-1])
    for level, following in pairwise(STEPS):
        free, conditional = exact(x, level, None).eps, exact(x, level, LABELS).eps
        mixed = free + scale * (conditional - free)
        x = following.alpha / level.alpha * (x - level.sigma * mixed) + following.sigma * free
    torch.testing.assert_close(found, x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rule", [rescaled(linear(0.6), 0.5), projected(0.6, 0.0, 0.1, 0.0)], ids=["rescale", "apg"])
def test_cfg_plus_plus_goes_with_every_rule(rule: Rule) -> None:
    denoiser, x, labels = model_denoiser(labelled_model, LEARNED), torch.randn(3, 3, 4, 4), torch.tensor([1, 2, 3])
    pair = null_label_pair(denoiser, NULL)
    alone, renoise = guided(pair, rule)(x, LEVEL, labels), guided(pair, renoised(rule))(x, LEVEL, labels)
    assert torch.equal(renoise.x0, alone.x0) and torch.equal(renoise.eps, alone.eps)
    assert torch.equal(renoise.direction, pair(x, LEVEL, labels)[1].eps) and torch.equal(alone.direction, alone.eps)


@pytest.mark.parametrize(
    "then",
    [
        clipped,
        lambda made: within((0.0, math.inf), made, IMAGES.denoiser()),
        lambda made: score_shifted(made, lambda x_t, level, labels: torch.ones_like(x_t)),
        lambda made: guided(two_models_pair(made, IMAGES.denoiser(), True), linear(1.5)),
    ],
    ids=["clipped", "interval", "classifier", "autoguidance"],
)
def test_what_comes_after_cfg_plus_plus_keeps_its_noise(then: Callable[[Denoiser], Denoiser]) -> None:
    made = guided(PAIR, renoised(linear(0.6)))
    found = then(made)(X, STEPS[4], LABELS)
    assert found.renoise is not None
    torch.testing.assert_close(found.direction, both(STEPS[4])[1].eps)


def quadratic_classifier(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """A classifier of 3 classes, surest of small images."""
    flat = x.flatten(1)
    return torch.stack([flat.sum(1), -(flat**2).sum(1), flat[:, 0] * 3], dim=1)


def test_the_gradient_is_linear_in_the_scale_and_leaves_no_trace() -> None:
    level, x = STEPS[5], X.clone().requires_grad_()
    once, thrice = (classifier_gradient(quadratic_classifier, scale)(x, level, LABELS) for scale in (1.0, 3.0))
    torch.testing.assert_close(3 * once, thrice)
    assert not once.requires_grad and x.grad is None and once.abs().max() > 0.1


def test_the_clamp_bounds_the_root_mean_square_of_the_noise_it_makes() -> None:
    """sigma times the gradient, of each image; the direction stays, and so do smaller ones."""
    level, scale = STEPS[5], 2.0
    free = classifier_gradient(quadratic_classifier, scale)(X, level, LABELS)
    rms = level.sigma * free.flatten(1).pow(2).mean(1).sqrt()
    bound = rms.median().item()
    held = classifier_gradient(quadratic_classifier, scale, clamp=bound)(X, level, LABELS)
    found = level.sigma * held.flatten(1).pow(2).mean(1).sqrt()
    torch.testing.assert_close(found, rms.clamp(max=bound))
    torch.testing.assert_close(held / apart(held).view(-1, 1, 1, 1), free / apart(free).view(-1, 1, 1, 1))
    assert (rms > bound).any() and (rms < bound).any()


def test_a_gradient_of_zero_is_not_clamped() -> None:
    flat = classifier_gradient(lambda x, time, labels: 0 * quadratic_classifier(x, time, labels), 1.0, clamp=0.1)
    torch.testing.assert_close(flat(X, STEPS[5], LABELS), torch.zeros_like(X))


def test_outside_of_the_interval_the_classifier_is_not_asked() -> None:
    asked = []

    def classifier(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        asked.append(time[0].item())
        return quadratic_classifier(x, time, labels)

    gradient = classifier_gradient(classifier, 1.0, interval=(STEPS[6].edm_sigma, STEPS[4].edm_sigma))
    zero = [bool((gradient(X, level, LABELS) == 0).all()) for level in STEPS[:-1]]
    assert [i for i, is_zero in enumerate(zero) if not is_zero] == [4, 5]
    assert asked == pytest.approx([STEPS[4].model_time, STEPS[5].model_time])


def test_score_form_moves_the_noise_and_keeps_x_t_and_the_variance() -> None:
    denoiser = IMAGES.denoiser()
    shifted = score_shifted(denoiser, classifier_gradient(quadratic_classifier, 2.0))
    for level in STEPS[:-1]:
        gradient = classifier_gradient(quadratic_classifier, 2.0)(X, level, LABELS)
        plain, found = denoiser(X, level, LABELS), shifted(X, level, LABELS)
        torch.testing.assert_close(found.eps, plain.eps - level.sigma * gradient)
        torch.testing.assert_close(level.alpha * found.x0 + level.sigma * found.eps, X)
        torch.testing.assert_close(found.log_variance, plain.log_variance)
