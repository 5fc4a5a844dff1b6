"""Options of the diffusion process, of its training objective, and of sampling from it."""

from dataclasses import dataclass
from typing import Literal

Prediction = Literal["eps", "x0", "mean", "v", "edm"]
Weighting = Literal["uniform", "min_snr", "edm"]
LEARNED_VARIANCES = ("learned", "learned_range")
SamplerName = Literal["ddpm", "ddim", "euler", "heun", "dpmpp_2m", "dpmpp_sde", "unipc"]
GuidanceMode = Literal["none", "cfg", "classifier", "both"]
Spacing = Literal["even", "trailing", "log_snr", "karras"]


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
    """What the network's output means: the noise, the image, the posterior's mean, v = alpha eps - sigma x0, or the
    output of EDM's preconditioning, which scales the network's input too (arXiv 2206.00364)."""
    sigma_data: float = 0.5
    """The data's standard deviation: of prediction edm, and of objective.weighting edm."""
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
    timesteps: Literal["uniform", "stratified", "loss_aware", "log_normal"] = "uniform"
    """How timesteps are drawn: independently, one from each of global_batch equal parts, by the losses seen, or, in
    continuous time, with a normal distribution of log(sigma / alpha)."""
    log_sigma_mean: float = -1.2
    """Of timesteps log_normal."""
    log_sigma_std: float = 1.2
    """Of timesteps log_normal."""
    p_uncond: float = 0.0
    """Probability of replacing a label by the null label (classifier-free guidance); > 0 adds a label row."""


@dataclass(frozen=True)
class SamplerOptions:
    """How samples are drawn from a trained process."""

    name: SamplerName = "ddpm"
    steps: str = "250"
    """A count; with spacing even also counts per section ("90,60,60,20,20") or "ddimN"."""
    spacing: Spacing | None = None
    """Which levels: evenly in the process's own time, the same counted back from its noisiest level, evenly in log-SNR,
    or as EDM's sigma^(1 / rho) (arXiv 2206.00364, equation 5). None is what suits the sampler: log_snr for those of
    higher order, else even."""
    rho: float = 7.0
    """Of spacing karras."""
    sigma_min: float = 0.002
    """Cleanest sigma / alpha of spacing log_snr and karras, or the process's own where that is larger."""
    sigma_max: float = 80.0
    """Noisiest sigma / alpha of these, or the process's own where that is smaller."""
    eta: float = 0.0
    """DDIM's noise: 0 is deterministic, 1 has the posterior's variance."""
    churn: float = 0.0
    """S_churn of euler and heun: noise added before each step (arXiv 2206.00364, Algorithm 2)."""
    churn_min: float = 0.0
    """Smallest sigma / alpha at which noise is added."""
    churn_max: float | None = None
    """Largest one; None is no limit."""
    churn_noise: float = 1.0
    """Standard deviation of the added noise."""
    clip_x0: bool = True


@dataclass(frozen=True)
class GuidanceOptions:
    """Which guidance, and how much. A scale s means uncond + s (cond - uncond): 1 is no guidance."""

    mode: GuidanceMode = "none"
    cfg_scale: float = 1.5
    classifier_scale: float = 1.0
    classifier: str | None = None
    """Run or export of a noise-aware classifier (modes classifier and both)."""
    uncond_model: str | None = None
    """Run or export of a separate unconditional model (modes cfg and both)."""
    interval: tuple[float, float] | None = None
    """Guide only where low < sigma / alpha <= high (arXiv 2404.07724); None is everywhere."""
    cfg_rescale: float = 0.0
    """Share of the guided image that is brought back to the conditional one's contrast (arXiv 2305.08891)."""
    cfg_plus_plus: bool = False
    """Renoise with the unconditional noise; cfg_scale is then 0 to 1 (CFG++, arXiv 2406.08070)."""
    apg_eta: float = 1.0
    """What is kept of the guidance's part parallel to the image (adaptive projected guidance, arXiv 2410.02416)."""
    apg_norm: float | None = None
    """Largest Euclidean norm of an image's guidance; None is no limit."""
    apg_momentum: float = 0.0
    """Of earlier steps' guidance; the paper's are below 0."""
    auto_scale: float = 1.0
    """Autoguidance (arXiv 2406.02507): the scale away from auto_model, in any mode; 1 is none."""
    auto_model: str | None = None
    """Run or export of a weaker model of the same task, given the same labels."""
    classifier_temperature: float = 1.0
    """What the classifier's logits are divided by."""
    gradient_clamp: float | None = None
    """Largest root mean square over an image of sigma times the scaled gradient; larger ones are scaled down."""
