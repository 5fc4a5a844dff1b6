"""Guidance as small transforms of denoisers.

A pair is a prediction and the one that guidance leads away from; a rule makes one prediction of the two. A scale s
means reference + s (prediction - reference): 1 is no guidance, and the classifier-free paper's w is s - 1.
"""

from collections.abc import Callable

import torch

from dist_diffusion.diffusion.denoiser import Denoiser, Model, Prediction, from_eps, from_x0
from dist_diffusion.diffusion.levels import ROUNDING, Level

Pair = Callable[[torch.Tensor, Level, torch.Tensor | None], tuple[Prediction, Prediction]]
"""(x_t, level, labels) to the prediction and its reference."""
Rule = Callable[[torch.Tensor, Level, Prediction, Prediction], Prediction]
"""(x_t, level, prediction, reference) to the guided prediction; the step's variance stays the prediction's."""
Gradient = Callable[[torch.Tensor, Level, torch.Tensor | None], torch.Tensor]
"""The scaled gradient s d log p(y | x_t) / d x_t, shaped like x_t."""
Interval = tuple[float, float]
"""Noise levels low < sigma / alpha <= high."""


def null_label_pair(denoiser: Denoiser, null_label: int) -> Pair:
    """With the labels and with the null label, by one forward pass over both halves."""

    def pair(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> tuple[Prediction, Prediction]:
        assert labels is not None, "classifier-free guidance needs labels"
        both = denoiser(torch.cat([x_t, x_t]), level, torch.cat([labels, torch.full_like(labels, null_label)]))
        (x0, other_x0), (eps, other_eps) = both.x0.chunk(2), both.eps.chunk(2)
        log_variance = both.log_variance
        if log_variance is not None and log_variance.ndim:
            log_variance = log_variance.chunk(2)[0]
        return Prediction(x0, eps, log_variance), Prediction(other_x0, other_eps, None)

    return pair


def two_models_pair(denoiser: Denoiser, reference: Denoiser, reference_has_labels: bool) -> Pair:
    """Of two models: an unconditional reference, or a weaker one that is given the labels too (arXiv 2406.02507)."""

    def pair(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> tuple[Prediction, Prediction]:
        return denoiser(x_t, level, labels), reference(x_t, level, labels if reference_has_labels else None)

    return pair


def guided(pair: Pair, rule: Rule) -> Denoiser:
    """The denoiser that a rule makes of a pair; the prediction's own `renoise` outlives it."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        prediction, reference = pair(x_t, level, labels)
        made = rule(x_t, level, prediction, reference)
        return made if prediction.renoise is None else made._replace(renoise=prediction.renoise)

    return denoise


def linear(scale: float) -> Rule:
    """Classifier-free guidance (arXiv 2207.12598, equation 6): reference + s (prediction - reference), of the noise."""

    def rule(x_t: torch.Tensor, level: Level, prediction: Prediction, reference: Prediction) -> Prediction:
        eps = reference.eps + scale * (prediction.eps - reference.eps)
        return from_eps(x_t, level, eps, prediction.log_variance)

    return rule


def projected(scale: float, eta: float, norm: float | None, momentum: float) -> Rule:
    """Adaptive projected guidance (arXiv 2410.02416, Algorithm 1) of the image.

    The difference, with `momentum` times the earlier ones and at most as long as `norm`, counts `eta` in the direction
    of the prediction and once across it. It remembers the earlier ones: make a rule for each batch.
    """
    sums: list[torch.Tensor] = []

    def rule(x_t: torch.Tensor, level: Level, prediction: Prediction, reference: Prediction) -> Prediction:
        difference = prediction.x0 - reference.x0
        if sums:
            difference = difference + momentum * sums.pop()
        sums.append(difference)
        length = euclidean_norm(difference)
        if norm is not None:
            difference = difference * (norm / length.clamp(min=norm))
        direction = prediction.x0 / euclidean_norm(prediction.x0)
        parallel = (difference * direction).flatten(1).sum(1).view_as(length) * direction
        update = difference - parallel + eta * parallel
        return from_x0(x_t, level, prediction.x0 + (scale - 1) * update, prediction.log_variance)

    return rule


def euclidean_norm(x: torch.Tensor) -> torch.Tensor:
    """Of each image, broadcastable over `x` (N, ...); of a zero image the smallest positive number."""
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return norm.clamp(min=torch.finfo(x.dtype).tiny)


def rescaled(rule: Rule, share: float) -> Rule:
    """`rule` with a share of its image at the standard deviation of the unguided one (arXiv 2305.08891, section 3.4).

    There it is v that is rescaled; at high noise, where guidance overexposes, v is -x0.
    """

    def rescale(x_t: torch.Tensor, level: Level, prediction: Prediction, reference: Prediction) -> Prediction:
        made = rule(x_t, level, prediction, reference)
        dims = tuple(range(1, x_t.ndim))
        ratio = prediction.x0.std(dim=dims, keepdim=True) / made.x0.std(dim=dims, keepdim=True)
        return from_x0(x_t, level, made.x0 * (share * ratio + 1 - share), made.log_variance)

    return rescale


def renoised(rule: Rule) -> Rule:
    """CFG++ (arXiv 2406.08070, Algorithm 2): the guided image is noised again with the reference's noise."""

    def renoise(x_t: torch.Tensor, level: Level, prediction: Prediction, reference: Prediction) -> Prediction:
        return rule(x_t, level, prediction, reference)._replace(renoise=reference.eps)

    return renoise


def in_interval(level: Level, interval: Interval) -> bool:
    """Whether guidance acts at a level."""
    low, high = interval
    return low < level.edm_sigma / (1 + ROUNDING) <= high


def within(interval: Interval, guided: Denoiser, plain: Denoiser) -> Denoiser:
    """`guided` in an interval of noise levels (arXiv 2404.07724), elsewhere `plain`, which costs less."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        chosen = guided if in_interval(level, interval) else plain
        return chosen(x_t, level, labels)

    return denoise


def classifier_gradient(
    classifier: Model,
    scale: float,
    temperature: float = 1.0,
    clamp: float | None = None,
    interval: Interval | None = None,
) -> Gradient:
    """s times the gradient of log p(y | x_t) of a frozen noise-aware classifier (arXiv 2105.05233, section 4).

    Taken at x_t, as the released code does; the paper's Algorithm 1 takes it at the predicted mean. `temperature`
    divides the logits; sigma times the gradient is scaled down to a root mean square of `clamp` over each image;
    outside of `interval` the gradient is 0 and the classifier not asked.
    """

    def gradient(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None, "classifier guidance needs labels"
        if interval is not None and not in_interval(level, interval):
            return torch.zeros_like(x_t)
        time = torch.full((len(x_t),), level.model_time, device=x_t.device)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            log_p = torch.log_softmax(classifier(x, time, None).float() / temperature, dim=-1)
            chosen = log_p[torch.arange(len(x), device=x.device), labels].sum()
            found = scale * torch.autograd.grad(chosen, x)[0]
        return found if clamp is None else clamped(found, clamp / level.sigma)

    return gradient


def clamped(gradient: torch.Tensor, largest: float) -> torch.Tensor:
    """Each image's gradient, scaled down to a root mean square of `largest` where it is larger."""
    root_mean_square = euclidean_norm(gradient) / gradient[0].numel() ** 0.5
    return gradient * (largest / root_mean_square).clamp(max=1)


def score_shifted(denoiser: Denoiser, gradient: Gradient) -> Denoiser:
    """Classifier guidance in score form (arXiv 2105.05233, Algorithm 2): eps - sigma s grad log p(y | x_t).

    x0 follows and is not clipped again, as in the released code.
    """

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        prediction = denoiser(x_t, level, labels)
        eps = prediction.eps - level.sigma * gradient(x_t, level, labels)
        return from_eps(x_t, level, eps, prediction.log_variance)._replace(renoise=prediction.renoise)

    return denoise
