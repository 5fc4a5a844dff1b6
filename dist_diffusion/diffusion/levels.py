"""Noise levels: what a sampler walks along."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """One noise level: x_t = alpha x0 + sigma eps.

    `model_time` is what the network is told. The log variances are of the reverse step from this level to the next of
    its path: the forward step's, the posterior's, and the one that fixed_large uses.
    """

    alpha: float
    sigma: float
    model_time: float
    log_beta: float = 0.0
    log_posterior_variance: float = 0.0
    log_large_variance: float = 0.0


CLEAN = Level(alpha=1.0, sigma=0.0, model_time=0.0)
NOISE = Level(alpha=0.0, sigma=1.0, model_time=0.0)
