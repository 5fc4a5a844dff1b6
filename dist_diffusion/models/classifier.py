"""The noise-aware classifier: the UNet's encoder and attention pooling (arXiv 2105.05233, section 4)."""

import torch
from torch import nn

from dist_diffusion.models.encoder import Blocks, attention_factors, build_encoder
from dist_diffusion.models.layers import GroupNorm32, attend, pointwise, timestep_embedding, weight_dtype
from dist_diffusion.models.options import ClassifierOptions


class AttentionPool(nn.Module):
    """Attention pooling as in CLIP (arXiv 2103.00020): the mean is a token of its own, and its output the result."""

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)
        self.num_heads = channels // head_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, out_channels)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t().to(tokens.dtype)
        pooled = attend(pointwise(self.qkv_proj, tokens), self.num_heads, new_order=True)
        return pointwise(self.c_proj, pooled[:, 0])


class Classifier(nn.Module):
    """log p(y | x_t, t) up to a constant."""

    def __init__(self, options: ClassifierOptions) -> None:
        super().__init__()
        assert options.image_size and options.num_classes
        width, emb = options.channels, 4 * options.channels
        self.channels = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        encoder = build_encoder(
            classifier_blocks(options, emb),
            options.image_size,
            options.in_channels,
            width,
            options.channel_mult,
            options.num_res_blocks,
            attention_factors(options.image_size, options.attention_resolutions),
        )
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block
        size = options.image_size // encoder.downsampling
        pool = AttentionPool(size, encoder.channels, options.num_head_channels, options.num_classes)
        self.out = nn.Sequential(GroupNorm32(encoder.channels), nn.SiLU(), pool)

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(N, C, H, W) and times (N,) to logits (N, num_classes). `labels` is there to share the models' signature."""
        dtype = weight_dtype(self.time_embed)
        emb = self.time_embed(timestep_embedding(time, self.channels).to(dtype))
        h = x.to(dtype).contiguous(memory_format=torch.channels_last)
        for block in self.input_blocks:
            h = block(h, emb)
        return self.out(self.middle_block(h, emb))


def classifier_blocks(options: ClassifierOptions, emb_channels: int) -> Blocks:
    """What all blocks of the network have in common."""
    return Blocks(
        emb_channels=emb_channels,
        dropout=options.dropout,
        scale_shift_norm=options.scale_shift_norm,
        resblock_updown=options.resblock_updown,
        num_heads=1,
        num_head_channels=options.num_head_channels,
        new_attention_order=options.new_attention_order,
    )
