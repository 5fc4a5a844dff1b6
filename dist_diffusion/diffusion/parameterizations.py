"""What a network predicts, and how that is an image or the noise again, at a noise level x_t = alpha x0 + sigma eps."""

from dataclasses import dataclass

import torch

from dist_diffusion.diffusion.options import Prediction

Scale = float | torch.Tensor


@dataclass(frozen=True)
class Coefficients:
    """Of one noise level (floats), or of one for each image (tensors that broadcast over the images)."""

    alpha: Scale
    sigma: Scale
    posterior_x0: Scale = 0.0
    """Of x0 in the mean of the trained process's posterior; for prediction mean alone, like the next."""
    posterior_x_t: Scale = 0.0
    """Of x_t in that mean."""


def broadcast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of samples (N,) in float32, broadcastable over `like` (N, ...)."""
    return values.float().view(-1, *[1] * (like.ndim - 1))


def target(prediction: Prediction, x0: torch.Tensor, eps: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """What a perfect network puts out, shaped like x0.

    The noise (arXiv 2006.11239, equation 14), the image, the mean of q(x_{t-1} | x_t, x0) (equation 7 there), or
    v = alpha eps - sigma x0 (arXiv 2202.00512, section 4).
    """
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    if prediction == "v":
        return at.alpha * eps - at.sigma * x0
    return at.posterior_x0 * x0 + at.posterior_x_t * (at.alpha * x0 + at.sigma * eps)


def image_of(x_t: torch.Tensor, eps: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """x0 = (x_t - sigma eps) / alpha, rounded as the released code rounds it."""
    return x_t * (1 / alpha) - eps * (sigma / alpha)


def noise_of(x_t: torch.Tensor, x0: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """eps = (x_t - alpha x0) / sigma, rounded as the released code rounds it."""
    return (x_t * (1 / alpha) - x0) / (sigma / alpha)


def x0_from(prediction: Prediction, output: torch.Tensor, x_t: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """The image that a network's output stands for: `target`, solved for x0."""
    if prediction == "eps":
        return image_of(x_t, output, at.alpha, at.sigma)
    if prediction == "x0":
        return output
    if prediction == "v":
        return at.alpha * x_t - at.sigma * output
    return (output - at.posterior_x_t * x_t) / at.posterior_x0


def eps_from(prediction: Prediction, output: torch.Tensor, x_t: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """The noise that a network's output stands for: `target`, solved for eps."""
    if prediction == "eps":
        return output
    if prediction == "v":
        return at.sigma * x_t + at.alpha * output
    return noise_of(x_t, x0_from(prediction, output, x_t, at), at.alpha, at.sigma)
