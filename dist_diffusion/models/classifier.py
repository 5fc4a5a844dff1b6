"""The noise-aware classifier: the UNet's encoder and attention pooling (arXiv 2105.05233, section 4)."""

import torch
from torch import nn

from dist_diffusion.models.encoder import Encoder, build_encoder, split_heads
from dist_diffusion.models.layers import (
    GroupNorm32,
    attend,
    pointwise,
    timestep_embedding,
    to_network,
    weight_dtype,
    zero,
)
from dist_diffusion.models.options import ClassifierOptions

POOL_WIDTH = 2048
"""Hidden width of the pools that see every block."""


class AttentionPool(nn.Module):
    """Attention pooling as in CLIP (arXiv 2103.00020): the mean is a token of its own, and its output the result."""

    def __init__(self, size: int, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)
        self.num_heads = num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out_channels)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t().to(tokens.dtype)
        pooled = attend(pointwise(self.qkv_proj, tokens), self.num_heads, new_order=True)
        return pointwise(self.c_proj, pooled[:, 0])


class Classifier(nn.Module):
    """log p(y | x_t, t) up to a constant."""

    def __init__(self, options: ClassifierOptions, recompute: bool) -> None:
        super().__init__()
        assert options.num_classes
        width, emb = options.channels, 4 * options.channels
        self.channels = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        encoder = build_encoder(options, options.in_channels, recompute)
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block
        self.pools_every_block = options.pool in ("spatial", "spatial_v2")
        self.out = build_pool(options, encoder, options.num_classes)

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) and times (N,) to logits (N, num_classes). `labels` is there to share the models' signature."""
        emb = self.time_embed(timestep_embedding(time, self.channels).to(weight_dtype(self)))
        h = to_network(x, self)
        means = []
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, emb)
            if self.pools_every_block:
                means.append(h.mean(dim=(2, 3)))
        return self.out(torch.cat(means, dim=1) if self.pools_every_block else h)


class MeanPool(nn.Module):
    """The average over positions. Without parameters, and deterministic on GPUs, which torch's own pool is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, 1, 1)."""
        return x.mean(dim=(2, 3), keepdim=True)


def build_pool(options: ClassifierOptions, encoder: Encoder, num_classes: int) -> nn.Sequential:
    """From the bottom's features, or the averages of every block, to logits."""
    channels = encoder.channels
    if options.pool == "attention":
        heads = split_heads(channels, options.num_heads, options.num_head_channels)
        pool = AttentionPool(encoder.size, channels, heads, num_classes)
        return nn.Sequential(GroupNorm32(channels), nn.SiLU(), pool)
    if options.pool == "adaptive":
        head = zero(nn.Conv2d(channels, num_classes, 1))
        return nn.Sequential(GroupNorm32(channels), nn.SiLU(), MeanPool(), head, nn.Flatten())
    features = nn.Linear(sum(encoder.skip_channels) + channels, POOL_WIDTH)
    if options.pool == "spatial":
        return nn.Sequential(features, nn.ReLU(), nn.Linear(POOL_WIDTH, num_classes))
    return nn.Sequential(features, GroupNorm32(POOL_WIDTH), nn.SiLU(), nn.Linear(POOL_WIDTH, num_classes))
