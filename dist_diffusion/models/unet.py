"""The ADM UNet (arXiv 2105.05233, section 3)."""

import torch
from torch import nn

from dist_diffusion.errors import ConfigError
from dist_diffusion.models.encoder import Blocks, Encoder, attention_factors, build_encoder, level_widths
from dist_diffusion.models.layers import (
    GroupNorm32,
    Upsample,
    timestep_embedding,
    to_network,
    weight_dtype,
    zero,
)
from dist_diffusion.models.options import UNetOptions


class UNet(nn.Module):
    """Predicts noise, and where `out_channels` is twice the image's, the step's variance."""

    def __init__(self, options: UNetOptions, recompute: bool, conditioning_channels: int = 0) -> None:
        super().__init__()
        assert options.out_channels and options.num_classes is not None
        check_halvings(options)
        width, emb = options.channels, 4 * options.channels
        self.channels = width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if options.num_classes:
            self.label_emb = nn.Embedding(options.num_classes + bool(options.null_label), emb)
        encoder = build_encoder(options, options.in_channels + conditioning_channels, recompute)
        self.input_blocks, self.middle_block = encoder.input_blocks, encoder.middle_block
        self.output_blocks, channels = build_decoder(options, encoder, recompute)
        out_conv = zero(nn.Conv2d(channels, options.out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm32(channels), nn.SiLU(), out_conv)

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """(N, C, H, W), times (N,) in the original timesteps and labels (N,) to (N, out_channels, H, W)."""
        emb = self.time_embed(timestep_embedding(time, self.channels).to(weight_dtype(self)))
        if hasattr(self, "label_emb"):
            assert labels is not None, "a class-conditional model needs labels"
            emb = emb + self.label_emb(labels)
        h = to_network(x, self)
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)


def check_halvings(options: UNetOptions) -> None:
    """ConfigError where the decoder could not double its way back to the image's size."""
    assert options.image_size
    halvings = len(options.channel_mult) - 1
    if options.image_size % 2**halvings:
        raise ConfigError(
            f"data.image_size={options.image_size} cannot be halved {halvings} times, as model.channel_mult asks"
        )


def build_decoder(options: UNetOptions, encoder: Encoder, recompute: bool) -> tuple[nn.ModuleList, int]:
    """Output blocks, each given the encoder's at its level, last first, and the channels that they end with."""
    heads = options.num_heads if options.num_heads_upsample is None else options.num_heads_upsample
    blocks = Blocks(options, heads, recompute)
    attention = attention_factors(options)
    output_blocks = nn.ModuleList()
    skips, current, factor = list(encoder.skip_channels), encoder.channels, encoder.downsampling
    for level, width in reversed(list(enumerate(level_widths(options)))):
        for i in range(options.num_res_blocks + 1):
            layers: list[nn.Module] = [blocks.residual(current + skips.pop(), width)]
            current = width
            if factor in attention:
                layers.append(blocks.attention(current))
            if level and i == options.num_res_blocks:
                layers.append(blocks.resample(current, Upsample))
                factor //= 2
            output_blocks.append(blocks.sequence(*layers))
    return output_blocks, current
