"""Keyed randomness: every random draw of training is a pure function of (seed, stream name, position).

The only place where randomness is made, so that no draw can depend on a rank, a worker or a restart.
Torch is imported by `normal` alone: decode workers draw uniforms and must not pay for it.
"""

import functools
import hashlib
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch


BELOW_ONE = 1 - 2.0**-53
_LENGTH = struct.Struct("<I")


def key(seed: int, stream: str, position: int) -> int:
    """The 64-bit blake2b key of one draw."""
    message = f"{seed}/{stream}/{position}".encode()
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")


def uniform(seed: int, stream: str, position: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    return (key(seed, stream, position) >> 11) * 2.0**-53


def permutation(seed: int, stream: str, position: int, length: int) -> np.ndarray:
    """A permutation of range(length), int64.

    Sorts PCG64's raw words: numpy promises a bit generator's raw stream for ever, but not Generator.permutation's.
    """
    words = np.random.PCG64(key(seed, stream, position)).random_raw(length)
    return np.argsort(words, kind="stable")


def normal(seed: int, stream: str, position: int, shape: tuple[int, ...]) -> "torch.Tensor":
    """Standard normal float32 noise from a CPU generator of its own."""
    import torch

    return torch.randn(shape, generator=generator(seed, stream, position))


def generator(seed: int, stream: str, position: int) -> "torch.Generator":
    """A CPU generator for a sequence of draws that belong to one position (a sampled image's noise)."""
    import torch

    return torch.Generator().manual_seed(key(seed, stream, position))


class Draw(Protocol):
    """One random quantity that a task needs for each sample."""

    @property
    def name(self) -> str:
        """The stream's name, and the name under which the task finds the value in its batch."""

    def at(self, seed: int, position: int) -> "torch.Tensor":
        """The value at one position."""

    def digest_bytes(self, value: "torch.Tensor") -> bytes:
        """What of the value enters the batch digest."""


@dataclass(frozen=True)
class Uniform:
    """u in [0, 1): a float64 scalar."""

    name: str

    def at(self, seed: int, position: int) -> "torch.Tensor":
        """The value at one position."""
        import torch

        return torch.tensor(uniform(seed, self.name, position), dtype=torch.float64)

    def digest_bytes(self, value: "torch.Tensor") -> bytes:
        """The float64 itself."""
        return struct.pack("<d", value.item())


@dataclass(frozen=True)
class Stratified(Uniform):
    """u in [0, 1) of which each global batch has one in each of its `batch` equal parts: a float64 scalar.

    The parts are dealt out to the batch's positions anew at every step.
    """

    batch: int

    def at(self, seed: int, position: int) -> "torch.Tensor":
        """The value at one position."""
        import torch

        step, slot = divmod(position, self.batch)
        part = int(_parts(seed, self.name, step, self.batch)[slot])
        u = (part + uniform(seed, self.name, position)) / self.batch
        return torch.tensor(min(u, BELOW_ONE), dtype=torch.float64)


@functools.lru_cache(maxsize=8)
def _parts(seed: int, name: str, step: int, batch: int) -> np.ndarray:
    return permutation(seed, f"{name}/parts", step, batch)


@dataclass(frozen=True)
class Normal:
    """Standard normal noise of one shape: float32."""

    name: str
    shape: tuple[int, ...]

    def at(self, seed: int, position: int) -> "torch.Tensor":
        """The value at one position."""
        return normal(seed, self.name, position, self.shape)

    def digest_bytes(self, value: "torch.Tensor") -> bytes:
        """The crc32 of the noise."""
        return struct.pack("<I", zlib.crc32(value.numpy().tobytes()))


@dataclass(frozen=True)
class Bernoulli:
    """True with a fixed probability: a bool scalar."""

    name: str
    probability: float

    def at(self, seed: int, position: int) -> "torch.Tensor":
        """The value at one position."""
        import torch

        return torch.tensor(uniform(seed, self.name, position) < self.probability)

    def digest_bytes(self, value: "torch.Tensor") -> bytes:
        """The decision."""
        return struct.pack("<?", value.item())


def framed(parts: Iterable[bytes]) -> bytes:
    """Parts as they enter a digest, each after its length (u4)."""
    return b"".join([_LENGTH.pack(len(part)) + part for part in parts])


def digest(message: bytes) -> int:
    """64-bit blake2b of one sample's framed parts; a step's digest is the sum over its samples mod 2**64."""
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
