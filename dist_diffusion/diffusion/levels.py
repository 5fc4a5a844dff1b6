"""Noise levels: what a sampler walks along."""

from dataclasses import dataclass

ROUNDING = 1e-6
"""Relative, of a noise level that was computed from another one or given with a few digits."""


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

    @property
    def edm_sigma(self) -> float:
        """sigma / alpha: the noise of the image x_t / alpha, which EDM (arXiv 2206.00364) calls sigma."""
        return self.sigma / self.alpha


CLEAN = Level(alpha=1.0, sigma=0.0, model_time=0.0)
NOISE = Level(alpha=0.0, sigma=1.0, model_time=0.0)
