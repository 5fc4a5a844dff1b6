"""The blocks of the ADM networks; attribute names are those of the released checkpoints."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dist_diffusion.errors import ConfigError

NUM_GROUPS = 32
SHORT = 256
"""Longest sequence whose attention matrix is made on a CPU in bf16."""
MEMORY_FORMAT = torch.channels_last
"""Of activations. Weights stay contiguous: the training engine cannot hold them otherwise."""


class GroupNorm32(nn.GroupNorm):
    """Group normalization over 32 groups, computed in float32."""

    def __init__(self, channels: int) -> None:
        if channels % NUM_GROUPS:
            raise ConfigError(f"model: {channels} channels cannot be normalized in {NUM_GROUPS} groups: use a multiple")
        super().__init__(NUM_GROUPS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize (N, C, ...); the result has x's dtype."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def zero(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def weight_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that a module computes in outside autocast."""
    return next(module.parameters()).dtype


def to_network(x: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """Images in the dtype and memory format that a network computes in."""
    return x.to(weight_dtype(module)).contiguous(memory_format=MEMORY_FORMAT)


def timestep_embedding(time: torch.Tensor, channels: int) -> torch.Tensor:
    """Sinusoids of (N,) times, cosines first: float32 (N, channels)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angles = time.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Downsample(nn.Module):
    """Halve the resolution: a strided convolution, or average pooling without parameters."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H/2, W/2)."""
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by nearest neighbours, with a convolution after it or without."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """A residual block conditioned on the timestep embedding, that may also resample."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        dropout: float,
        scale_shift_norm: bool,
        resample: type[Downsample] | type[Upsample] | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resample = resample(channels, use_conv=False) if resample else None
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        emb_out = 2 * out_channels if scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, kernel_size=1)
        )

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) and (N, emb_channels) to (N, out_channels, H', W')."""
        norm, activation, conv = self.in_layers
        h = activation(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        emb_out = self.emb_layers(emb)[:, :, None, None].to(h.dtype)
        out_norm, *rest = self.out_layers
        if self.scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = out_norm(h) * (1 + scale) + shift
        else:
            h = out_norm(h + emb_out)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


def attend(qkv: torch.Tensor, num_heads: int, new_order: bool) -> torch.Tensor:
    """Self-attention on packed (N, T, 3C) to (N, T, C).

    The new order packs [q | k | v] with all heads in each; the legacy order packs [q | k | v] head by head.
    """
    n, length, width = qkv.shape
    head = width // (3 * num_heads)
    if new_order:
        q, k, v = qkv.view(n, length, 3, num_heads, head).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = qkv.view(n, length, num_heads, 3, head).permute(3, 0, 2, 1, 4)
    return dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width // 3)


def dot_product_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over (N, heads, T, D), the softmax computed in float32."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= SHORT:
        # The CPU's fused kernel has a slow bf16 backward pass: at T <= 256 plain products take 0.1 to 0.6 of its time.
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return logits.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a feature map."""

    def __init__(self, channels: int, num_heads: int, new_order: bool) -> None:
        super().__init__()
        self.num_heads, self.new_order = num_heads, new_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to the same."""
        n, c, height, width = x.shape
        # channels_last makes (N, H W, C) a view, so both 1x1 convolutions are plain matrix products.
        h = self.norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        h = attend(pointwise(self.qkv, h), self.num_heads, self.new_order)
        h = pointwise(self.proj_out, h)
        return x + h.view(n, height, width, c).permute(0, 3, 1, 2)


def pointwise(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution on channels-last features: (N, T, C) to (N, T, C')."""
    assert isinstance(conv, nn.Conv1d)
    return F.linear(x, conv.weight.squeeze(-1), conv.bias)


class TimestepSequential(nn.Sequential):
    """A sequence whose residual blocks are also given the timestep embedding.

    With `recompute` the backward pass keeps its input alone and computes the rest again, dropout included.
    """

    def __init__(self, *layers: nn.Module, recompute: bool = False) -> None:
        super().__init__(*layers)
        self.recompute = recompute

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(N, C, H, W) and (N, E) through all blocks."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._through, x, emb, use_reentrant=False)
        return self._through(x, emb)

    def _through(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
