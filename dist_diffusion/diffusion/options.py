"""Options of the diffusion process and of its training objective."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DiffusionOptions:
    """The process that a model is trained on: everything sampling must know of it."""

    schedule: Literal["linear", "cosine"] = "linear"
    num_timesteps: int = 1000
    prediction: Literal["eps", "v"] = "eps"
    """What the network's output means: the noise, or v = alpha eps - sigma x0."""
    variance: Literal["learned_range", "fixed_small", "fixed_large"] = "learned_range"


@dataclass(frozen=True)
class ObjectiveOptions:
    """What the diffusion task minimises."""

    loss: Literal["simple", "hybrid"] = "hybrid"
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
