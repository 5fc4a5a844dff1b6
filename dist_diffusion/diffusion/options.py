"""Options of the diffusion process, of its training objective, and of sampling from it."""

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["eps", "x0", "mean", "v"]
Weighting = Literal["uniform", "min_snr", "edm"]
LEARNED_VARIANCES = ("learned", "learned_range")


@dataclass(frozen=True)
class DiffusionOptions:
    """The process that a model is trained on: everything sampling must know of it."""

    schedule: Literal["linear", "cosine", "log_snr"] = "linear"
    """Two discrete schedules, and continuous time between two log signal-to-noise ratios (arXiv 2207.12598)."""
    num_timesteps: int = 1000
    """T of a discrete schedule."""
    rescale_timesteps: bool = False
    """The network is told 1000 t / T in place of t."""
    log_snr_min: float = -20.0
    """Of schedule log_snr."""
    log_snr_max: float = 20.0
    """Of schedule log_snr."""
    prediction: Prediction = "eps"
    """What the network's output means: the noise, the image, the posterior's mean, or v = alpha eps - sigma x0."""
    variance: Literal["learned_range", "learned", "fixed_small", "fixed_large", "fixed_mix"] = "learned_range"
    """Of a reverse step: between the posterior's and the forward step's by the network's choice, the network's log
    variance itself, the posterior's, the forward step's, or between these two by variance_mix."""
    variance_mix: float = 0.3
    """Of variance fixed_mix, in the logarithm: 0 is the posterior's, 1 the forward step's (v of arXiv 2207.12598)."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the diffusion task minimises."""

    loss: Literal["simple", "hybrid", "rescaled", "kl"] = "hybrid"
    """The squared error; with the variational bound on the variance; with the bound times T / 1000; T times the bound
    on mean and variance."""
    weighting: Weighting = "uniform"
    """Of the squared error, by signal-to-noise ratio."""
    min_snr_gamma: float = 5.0
    """Largest weight of weighting min_snr."""
    sigma_data: float = 0.5
    """The data's standard deviation in weighting edm."""
    timesteps: Literal["uniform", "stratified", "loss_aware"] = "uniform"
    """How timesteps are drawn: independently, one from each of global_batch equal parts, or by the losses seen."""
    p_uncond: float = 0.0
    """Probability of replacing a label by the null label (classifier-free guidance); > 0 adds a label row."""


@dataclass(frozen=True)
class SamplerOptions:
    """How samples are drawn from a trained process."""

    name: Literal["ddpm", "ddim"] = "ddpm"
    steps: str = "250"
    """A respacing: a count, counts per section ("90,60,60,20,20") or "ddimN"."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 has the posterior's variance."""
    clip_x0: bool = True


@dataclass(frozen=True)
class GuidanceOptions:
    """Which guidance, and how much. A scale s means uncond + s (cond - uncond): 1 is no guidance."""

    mode: Literal["none", "cfg", "classifier", "both"] = "none"
    cfg_scale: float = 1.5
    classifier_scale: float = 1.0
    classifier: str | None = None
    """Run or export of a noise-aware classifier (modes classifier and both)."""
    uncond_model: str | None = None
    """Run or export of a separate unconditional model (modes cfg and both)."""
