"""The encoder half that the UNet and the classifier share."""

from dataclasses import dataclass

from torch import nn

from dist_diffusion.errors import ConfigError
from dist_diffusion.models.layers import AttentionBlock, Downsample, ResBlock, TimestepSequential, Upsample


@dataclass(frozen=True)
class Blocks:
    """Builds the residual and attention blocks of one network: all that they have in common."""

    emb_channels: int
    dropout: float
    scale_shift_norm: bool
    resblock_updown: bool
    num_heads: int
    num_head_channels: int | None
    new_attention_order: bool

    def residual(self, channels: int, out_channels: int) -> ResBlock:
        """A block that changes the channels."""
        return ResBlock(channels, self.emb_channels, out_channels, self.dropout, self.scale_shift_norm)

    def attention(self, channels: int) -> AttentionBlock:
        """Self-attention with the configured heads."""
        heads = self.num_heads if self.num_head_channels is None else channels // self.num_head_channels
        if heads < 1 or channels % heads:
            wanted = f"num_heads={heads}" if self.num_head_channels is None else f"{self.num_head_channels} a head"
            raise ConfigError(f"model: {channels} channels cannot be split into heads of {wanted}")
        return AttentionBlock(channels, heads, self.new_attention_order)

    def resample(self, channels: int, direction: type[Downsample] | type[Upsample]) -> nn.Module:
        """Halve or double the resolution, by a residual block or a plain convolution."""
        if not self.resblock_updown:
            return direction(channels, use_conv=True)
        return ResBlock(channels, self.emb_channels, channels, self.dropout, self.scale_shift_norm, direction)


@dataclass(frozen=True)
class Encoder:
    """The encoder's modules and what a decoder must know of them."""

    input_blocks: nn.ModuleList
    middle_block: TimestepSequential
    skip_channels: list[int]
    """Output channels of every input block."""
    channels: int
    """Channels at the bottom."""
    downsampling: int
    """Image size over the bottom's size."""


def attention_factors(image_size: int, resolutions: tuple[int, ...]) -> set[int]:
    """The downsampling factors at which attention is used."""
    return {image_size // resolution for resolution in resolutions}


def build_encoder(
    blocks: Blocks,
    image_size: int,
    in_channels: int,
    channels: int,
    channel_mult: tuple[int, ...],
    num_res_blocks: int,
    attention: set[int],
) -> Encoder:
    """Input blocks and middle block (arXiv 2105.05233, section 3)."""
    levels = len(channel_mult)
    if image_size % 2 ** (levels - 1):
        raise ConfigError(
            f"data.image_size={image_size} cannot be halved {levels - 1} times, as model.channel_mult asks"
        )
    current, factor = channel_mult[0] * channels, 1
    input_blocks = nn.ModuleList([TimestepSequential(nn.Conv2d(in_channels, current, 3, padding=1))])
    skips = [current]
    for level, multiplier in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            layers: list[nn.Module] = [blocks.residual(current, multiplier * channels)]
            current = multiplier * channels
            if factor in attention:
                layers.append(blocks.attention(current))
            input_blocks.append(TimestepSequential(*layers))
            skips.append(current)
        if level + 1 < levels:
            input_blocks.append(TimestepSequential(blocks.resample(current, Downsample)))
            skips.append(current)
            factor *= 2
    middle = TimestepSequential(
        blocks.residual(current, current), blocks.attention(current), blocks.residual(current, current)
    )
    return Encoder(input_blocks, middle, skips, current, factor)
