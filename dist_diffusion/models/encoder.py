"""The encoder half that the UNet and the classifier share."""

from dataclasses import dataclass

from torch import nn

from dist_diffusion.errors import ConfigError
from dist_diffusion.models.layers import AttentionBlock, Downsample, ResBlock, TimestepSequential, Upsample
from dist_diffusion.models.options import NetworkOptions


@dataclass(frozen=True)
class Blocks:
    """Builds the residual and attention blocks of one network: all that they have in common."""

    options: NetworkOptions
    num_heads: int
    """The decoder's may be others than the options'."""
    recompute: bool

    def residual(
        self, channels: int, out_channels: int, direction: type[Downsample] | type[Upsample] | None = None
    ) -> ResBlock:
        """A block that changes the channels, and with a direction the resolution."""
        o = self.options
        return ResBlock(channels, 4 * o.channels, out_channels, o.dropout, o.scale_shift_norm, direction)

    def attention(self, channels: int) -> AttentionBlock:
        """Self-attention with the configured heads."""
        heads = split_heads(channels, self.num_heads, self.options.num_head_channels)
        return AttentionBlock(channels, heads, self.options.new_attention_order)

    def sequence(self, *layers: nn.Module) -> TimestepSequential:
        """The blocks between two skips."""
        return TimestepSequential(*layers, recompute=self.recompute)

    def halved(self, size: int) -> int:
        """The size after a halving: averages leave the last row of an odd size out, convolutions do not."""
        return size // 2 if self.options.resblock_updown else (size + 1) // 2

    def resample(self, channels: int, direction: type[Downsample] | type[Upsample]) -> nn.Module:
        """Halve or double the resolution, by a residual block or a plain convolution."""
        if not self.options.resblock_updown:
            return direction(channels, use_conv=True)
        return self.residual(channels, channels, direction)


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
    """2 to the number of halvings."""
    size: int
    """The bottom's size."""


def split_heads(channels: int, num_heads: int, num_head_channels: int | None) -> int:
    """How many heads attention over `channels` has; ConfigError where they do not divide."""
    if num_head_channels is not None:
        if channels % num_head_channels:
            raise ConfigError(f"model.num_head_channels={num_head_channels} does not divide {channels} channels")
        return channels // num_head_channels
    if num_heads < 1 or channels % num_heads:
        raise ConfigError(
            f"{num_heads} attention heads (model.num_heads, num_heads_upsample) do not divide {channels} channels"
        )
    return num_heads


def attention_factors(options: NetworkOptions) -> set[int]:
    """The downsampling factors at which attention is used."""
    assert options.image_size
    return {options.image_size // resolution for resolution in options.attention_resolutions}


def level_widths(options: NetworkOptions) -> list[int]:
    """Channels of each resolution; ConfigError where a multiplier leaves a fraction of a channel."""
    channels = options.channels
    for multiplier in options.channel_mult:
        if multiplier * channels % 1:
            raise ConfigError(f"model.channel_mult has {multiplier}, of model.channels={channels} that is no number")
    return [int(multiplier * channels) for multiplier in options.channel_mult]


def build_encoder(options: NetworkOptions, in_channels: int, recompute: bool) -> Encoder:
    """Input blocks and middle block (arXiv 2105.05233, section 3)."""
    assert options.image_size
    blocks = Blocks(options, options.num_heads, recompute)
    widths, attention = level_widths(options), attention_factors(options)
    current, factor, size = widths[0], 1, options.image_size
    input_blocks = nn.ModuleList([blocks.sequence(nn.Conv2d(in_channels, current, 3, padding=1))])
    skips = [current]
    for level, width in enumerate(widths):
        for _ in range(options.num_res_blocks):
            layers: list[nn.Module] = [blocks.residual(current, width)]
            current = width
            if factor in attention:
                layers.append(blocks.attention(current))
            input_blocks.append(blocks.sequence(*layers))
            skips.append(current)
        if level + 1 < len(widths):
            input_blocks.append(blocks.sequence(blocks.resample(current, Downsample)))
            skips.append(current)
            factor *= 2
            size = blocks.halved(size)
    middle = blocks.sequence(
        blocks.residual(current, current), blocks.attention(current), blocks.residual(current, current)
    )
    return Encoder(input_blocks, middle, skips, current, factor, size)
