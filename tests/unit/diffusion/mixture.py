"""A Gaussian mixture with classes: all that diffusion models learn of it is known in closed form, in float64.

The component j of x0 is N(mean_j, diag(variance_j)), so that of x_t is N(alpha mean_j, diag(alpha^2 variance_j +
sigma^2)).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dist_diffusion.diffusion.denoiser import Denoiser, Model, Prediction, from_eps
from dist_diffusion.diffusion.levels import Level
from dist_diffusion.diffusion.options import DiffusionOptions
from dist_diffusion.diffusion.parameterizations import Coefficients, image_of, target


@dataclass(frozen=True)
class Mixture:
    """A distribution of images of one shape. The label `num_classes`, like None, is the null label: all classes."""

    shape: tuple[int, int, int]
    weights: torch.Tensor
    """Of the components, (J,)."""
    means: torch.Tensor
    """(J, D), D the pixels of an image."""
    variances: torch.Tensor
    """(J, D)."""
    classes: torch.Tensor
    """Of the components, (J,)."""

    @property
    def num_classes(self) -> int:
        return int(self.classes.max()) + 1

    def log_joint(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """log of w_j N(x_t | j), (N, J)."""
        variance = level.alpha**2 * self.variances + level.sigma**2
        distance = (x.flatten(1)[:, None] - level.alpha * self.means) ** 2 / variance
        return self.weights.log() - 0.5 * (distance + variance.log() + math.log(2 * math.pi)).sum(-1)

    def chosen(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Which components an image's label allows, (N, J)."""
        null = torch.full((len(x),), self.num_classes)
        labels = null if labels is None else labels
        return (labels[:, None] == self.classes) | (labels[:, None] == self.num_classes)

    def log_density(self, x: torch.Tensor, level: Level, labels: torch.Tensor | None = None) -> torch.Tensor:
        """log p_t(x), or with labels log p_t(x | y), (N,)."""
        chosen = self.chosen(x, labels)
        prior = torch.where(chosen, self.weights, 0.0).sum(1).log()
        return self.log_joint(x, level).masked_fill(~chosen, -math.inf).logsumexp(1) - prior

    def log_posterior(self, x: torch.Tensor, level: Level) -> torch.Tensor:
        """log p(y | x_t), (N, K): the logits of the exact classifier."""
        joint = self.log_joint(x, level)
        of_class = [joint[:, self.classes == k].logsumexp(1) for k in range(self.num_classes)]
        return torch.stack(of_class, dim=1).log_softmax(1)

    def score(self, x: torch.Tensor, level: Level, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The gradient of `log_density` at x, shaped like x."""
        share = self.log_joint(x, level).masked_fill(~self.chosen(x, labels), -math.inf).softmax(1)
        variance = level.alpha**2 * self.variances + level.sigma**2
        found = (share[..., None] * (level.alpha * self.means - x.flatten(1)[:, None]) / variance).sum(1)
        return found.view_as(x)

    def guided_score(self, x: torch.Tensor, level: Level, labels: torch.Tensor, scale: float) -> torch.Tensor:
        """The gradient of log p_t(x) + s log p(y | x_t), of nothing but these two."""
        with torch.enable_grad():
            held = x.detach().requires_grad_()
            log_p = self.log_posterior(held, level)[torch.arange(len(x)), labels]
            return torch.autograd.grad((self.log_density(held, level) + scale * log_p).sum(), held)[0]

    def denoiser(self) -> Denoiser:
        """The exact denoiser, at any level; its step's variance is the posterior's."""
        return score_denoiser(self.score)

    def guided(self, scale: float) -> Denoiser:
        """The denoiser of `guided_score`."""

        def score(x: torch.Tensor, level: Level, labels: torch.Tensor | None) -> torch.Tensor:
            assert labels is not None
            return self.guided_score(x, level, labels, scale)

        return score_denoiser(score)

    def network(self, options: DiffusionOptions, levels: Sequence[Level]) -> Model:
        """The exact network of a prediction, at these levels."""
        level_of = by_time(levels)

        def model(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            level = level_of(time)
            eps = -level.sigma * self.score(x, level, labels)
            at = Coefficients(level.alpha, level.sigma)
            return target(options, image_of(x, eps, level.alpha, level.sigma), eps, at)

        return model

    def classifier(self, levels: Sequence[Level]) -> Model:
        """The exact classifier of noised images, at these levels."""
        level_of = by_time(levels)
        return lambda x, time, labels: self.log_posterior(x, level_of(time))

    def sample(self, num: int, seed: int, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Images, (num, C, H, W)."""
        generator = torch.Generator().manual_seed(seed)
        share = torch.where(self.chosen(torch.empty(num), labels), self.weights, 0.0)
        j = torch.multinomial(share, 1, generator=generator).flatten()
        z = torch.randn((num, self.means.shape[1]), generator=generator, dtype=torch.float64)
        return (self.means[j] + self.variances[j].sqrt() * z).view(num, *self.shape)


def score_denoiser(score: Callable[[torch.Tensor, Level, torch.Tensor | None], torch.Tensor]) -> Denoiser:
    """The denoiser that belongs to a score: eps = -sigma score."""

    def denoise(x_t: torch.Tensor, level: Level, labels: torch.Tensor | None) -> Prediction:
        eps = -level.sigma * score(x_t, level, labels)
        return from_eps(x_t, level, eps, torch.tensor(level.log_posterior_variance, dtype=torch.float64))

    return denoise


def by_time(levels: Sequence[Level]) -> Callable[[torch.Tensor], Level]:
    """From what a network is told, in float32, to the very level: looked up, so that nothing is rounded."""
    noisy = [level for level in levels if level.sigma]
    known = {torch.tensor(level.model_time).item(): level for level in noisy}
    assert len(known) == len(noisy), "two levels have one time"
    return lambda time: known[time[0].item()]


def float64(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


FLAT = Mixture(
    shape=(1, 1, 2),
    weights=float64(0.15, 0.25, 0.2, 0.3, 0.1),
    means=float64([-0.8, 0.3], [0.1, 0.8], [0.7, 0.5], [-0.4, -0.6], [0.6, -0.7]),
    variances=float64([0.02, 0.05], [0.04, 0.01], [0.02, 0.02], [0.05, 0.03], [0.01, 0.04]),
    classes=torch.tensor([0, 0, 1, 2, 2]),
)
"""Three classes of two pixels; two of them have two components."""

_generator = torch.Generator().manual_seed(0)
IMAGES = Mixture(
    shape=(3, 2, 2),
    weights=float64(0.3, 0.2, 0.25, 0.25),
    means=1.2 * torch.rand((4, 12), generator=_generator, dtype=torch.float64) - 0.6,
    variances=0.02 + 0.1 * torch.rand((4, 12), generator=_generator, dtype=torch.float64),
    classes=torch.tensor([0, 1, 1, 2]),
)
"""Three classes of small images."""
