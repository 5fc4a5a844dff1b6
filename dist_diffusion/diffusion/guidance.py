"""Guidance as small transforms of denoisers.

A scale s means uncond + s (cond - uncond): 1 is no guidance, and the classifier-free paper's w is s - 1.
"""

from collections.abc import Callable

import torch

from dist_diffusion.diffusion.denoiser import Denoiser, Model, Prediction, from_eps
from dist_diffusion.diffusion.levels import Level

Gradient = Callable[[torch.Tensor, Level, torch.Tensor | None], torch.Tensor]
"""The scaled gradient s d log p(y | x_t) / d x_t, shaped like x_t."""


def classifier_free(denoiser: Denoiser, scale: float, null_label: int) -> Denoiser:
    """Classifier-free guidance (arXiv 2207.12598, equation 6) by one forward pass over both halves.

    The learned variance is the conditional half's.
    """

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        if scale == 1:
            return denoiser(x_t, level, labels)
        assert labels is not None, "classifier-free guidance needs labels"
        both_labels = torch.cat([labels, torch.full_like(labels, null_label)])
        both = denoiser(torch.cat([x_t, x_t]), level, both_labels)
        conditional, unconditional = both.eps.chunk(2)
        log_variance = both.log_variance
        if log_variance is not None and log_variance.ndim:
            log_variance = log_variance.chunk(2)[0]
        return from_eps(x_t, level, mix(conditional, unconditional, scale), log_variance)

    return denoise


def guided_by_model(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance whose unconditional estimate is another model's."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        prediction = conditional(x_t, level, labels)
        reference = unconditional(x_t, level, None)
        return from_eps(x_t, level, mix(prediction.eps, reference.eps, scale), prediction.log_variance)

    return denoise


def mix(conditional: torch.Tensor, unconditional: torch.Tensor, scale: float) -> torch.Tensor:
    """uncond + s (cond - uncond)."""
    return unconditional + scale * (conditional - unconditional)


def classifier_gradient(classifier: Model, scale: float) -> Gradient:
    """s times the gradient of log p(y | x_t) of a frozen noise-aware classifier (arXiv 2105.05233, section 4).

    Taken at x_t, as the released code does; the paper's Algorithm 1 takes it at the predicted mean.
    """

    def gradient(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None, "classifier guidance needs labels"
        time = torch.full((len(x_t),), level.model_time, device=x_t.device)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            log_p = torch.log_softmax(classifier(x, time, None).float(), dim=-1)
            chosen = log_p[torch.arange(len(x), device=x.device), labels].sum()
            return scale * torch.autograd.grad(chosen, x)[0]

    return gradient


def score_shifted(denoiser: Denoiser, gradient: Gradient) -> Denoiser:
    """Classifier guidance in score form (arXiv 2105.05233, Algorithm 2): eps - sigma s grad log p(y | x_t).

    x0 follows and is not clipped again, as in the released code.
    """

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        prediction = denoiser(x_t, level, labels)
        eps = prediction.eps - level.sigma * gradient(x_t, level, labels)
        return from_eps(x_t, level, eps, prediction.log_variance)

    return denoise
