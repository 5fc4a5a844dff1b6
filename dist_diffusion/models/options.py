"""Options of the networks. Fields with None are taken from the data and the process when a recipe is resolved."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NetworkOptions:
    """What every network here has: ADM's encoder (arXiv 2105.05233, section 3)."""

    channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 3, 4)
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    """Image sizes, in pixels, at which attention is used."""
    num_heads: int = 4
    num_head_channels: int | None = None
    """Channels of a head; where given it decides, else num_heads does."""
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    new_attention_order: bool = False
    dropout: float = 0.0
    in_channels: int = 3
    image_size: int | None = None
    """From data.image_size."""
    num_classes: int | None = None
    """From the manifest; of a UNet 0 is unconditional."""


@dataclass(frozen=True)
class UNetOptions(NetworkOptions):
    """The ADM UNet (arXiv 2105.05233, section 3)."""

    attention_resolutions: tuple[int, ...] = (16, 8)
    num_heads_upsample: int | None = None
    """Heads in the decoder; None is num_heads."""
    out_channels: int | None = None
    """From the process: 3, or 6 with a learned variance."""
    null_label: bool | None = None
    """From objective.p_uncond: one more label row, the last, for the dropped label."""


@dataclass(frozen=True)
class SuperResolutionOptions(UNetOptions):
    """The UNet that is also given a smaller image of the same scene (arXiv 2105.05233, section 3)."""

    low_res_size: int = 64
    """Size of the smaller image."""


@dataclass(frozen=True)
class ClassifierOptions(NetworkOptions):
    """The noise-aware classifier: the UNet's encoder and a pool (arXiv 2105.05233, section 4)."""

    num_heads: int = 1
    num_head_channels: int | None = 64
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"
    """From features to logits: attention with the mean as a token, their average, or a small network on the averages
    of every block."""
