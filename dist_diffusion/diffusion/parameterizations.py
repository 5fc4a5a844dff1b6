"""What a network predicts, and how that is an image or the noise again, at a noise level x_t = alpha x0 + sigma eps."""

from dataclasses import dataclass

import torch

from dist_diffusion.diffusion.options import DiffusionOptions

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


def network_input(options: DiffusionOptions, x_t: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """What the network is shown of x_t: x_t itself; for prediction edm of unit variance."""
    return x_t / data_std(options, at) if options.prediction == "edm" else x_t


def data_std(options: DiffusionOptions, at: Coefficients) -> Scale:
    """The standard deviation of x_t where the images' is sigma_data: alpha / c_in of arXiv 2206.00364, table 1."""
    return (at.sigma**2 + (at.alpha * options.sigma_data) ** 2) ** 0.5


def target(options: DiffusionOptions, x0: torch.Tensor, eps: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """What a perfect network puts out, shaped like x0.

    The noise (arXiv 2006.11239, equation 14), the image, the mean of q(x_{t-1} | x_t, x0) (equation 7 there),
    v = alpha eps - sigma x0 (arXiv 2202.00512, section 4), or F of EDM's D = c_skip x + c_out F (arXiv 2206.00364,
    equations 7 and 8, where x is x_t / alpha), which is -v at sigma_data 1.
    """
    if options.prediction == "eps":
        return eps
    if options.prediction == "x0":
        return x0
    if options.prediction == "v":
        return at.alpha * eps - at.sigma * x0
    if options.prediction == "edm":
        data = options.sigma_data
        return (at.sigma / data * x0 - at.alpha * data * eps) / data_std(options, at)
    return at.posterior_x0 * x0 + at.posterior_x_t * (at.alpha * x0 + at.sigma * eps)


def image_of(x_t: torch.Tensor, eps: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """x0 = (x_t - sigma eps) / alpha, rounded as the released code rounds it."""
    return x_t * (1 / alpha) - eps * (sigma / alpha)


def noise_of(x_t: torch.Tensor, x0: torch.Tensor, alpha: Scale, sigma: Scale) -> torch.Tensor:
    """eps = (x_t - alpha x0) / sigma, rounded as the released code rounds it."""
    return (x_t * (1 / alpha) - x0) / (sigma / alpha)


def x0_from(options: DiffusionOptions, output: torch.Tensor, x_t: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """The image that a network's output stands for: `target`, solved for x0."""
    if options.prediction == "eps":
        return image_of(x_t, output, at.alpha, at.sigma)
    if options.prediction == "x0":
        return output
    if options.prediction == "v":
        return at.alpha * x_t - at.sigma * output
    if options.prediction == "edm":
        data, std = options.sigma_data, data_std(options, at)
        return at.alpha * (data / std) ** 2 * x_t + at.sigma * data / std * output
    return (output - at.posterior_x_t * x_t) / at.posterior_x0


def eps_from(options: DiffusionOptions, output: torch.Tensor, x_t: torch.Tensor, at: Coefficients) -> torch.Tensor:
    """The noise that a network's output stands for: `target`, solved for eps."""
    if options.prediction == "eps":
        return output
    if options.prediction == "v":
        return at.sigma * x_t + at.alpha * output
    if options.prediction == "edm":
        std = data_std(options, at)
        return at.sigma / std**2 * x_t - at.alpha * options.sigma_data / std * output
    return noise_of(x_t, x0_from(options, output, x_t, at), at.alpha, at.sigma)
