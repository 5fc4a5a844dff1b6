"""What the samples of a set are like: tallied shard by shard, as JSON, and summed up for the manifest."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dist_diffusion.data.images import Header, UndecodableError
from dist_diffusion.errors import DataError

_UPRIGHT = 1


class Tally(Protocol):
    """Of the samples of one shard."""

    def to_json(self) -> dict[str, Any]:
        """What `summary` takes."""


class ImageTally:
    """Of images: sizes in pixels as stored."""

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._heights: list[int] = []
        self._bytes = 0
        self._formats: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self._rotated = 0

    def add(self, header: Header, num_bytes: int) -> None:
        """One more image."""
        self._widths.append(header.width)
        self._heights.append(header.height)
        self._bytes += num_bytes
        self._formats[header.format] += 1
        self._modes[header.mode] += 1
        self._rotated += header.orientation != _UPRIGHT

    def to_json(self) -> dict[str, Any]:
        """What `summary` takes."""
        return {
            "samples": len(self._widths),
            "bytes": self._bytes,
            "width": _extent(self._widths),
            "height": _extent(self._heights),
            "formats": dict(self._formats),
            "modes": dict(self._modes),
            "rotated": self._rotated,
        }


class LatentTally:
    """Of latents, which must all be of one shape and dtype."""

    def __init__(self) -> None:
        self._bytes = 0
        self._samples = 0
        self._sums: list[float] = []
        self._squares: list[float] = []
        self._format: tuple[list[int], str] | None = None

    def add(self, latent: np.ndarray, num_bytes: int) -> None:
        """One more latent. UndecodableError where it differs from the first in shape or dtype."""
        found = (list(latent.shape), str(latent.dtype))
        self._format = self._format or found
        if found != self._format:
            first = f"{self._format[1]}, {self._format[0]}"
            raise UndecodableError(f"{found[1]}, {found[0]}, but the latents before it {first}")
        self._samples += 1
        self._bytes += num_bytes
        values = latent.astype(np.float64)
        self._sums.append(float(values.sum()))
        self._squares.append(float(np.square(values).sum()))

    def to_json(self) -> dict[str, Any]:
        """What `summary` takes."""
        shape, dtype = self._format or ([], "")
        return {
            "samples": self._samples,
            "bytes": self._bytes,
            "shape": shape,
            "dtype": dtype,
            "sum": math.fsum(self._sums),
            "squares": math.fsum(self._squares),
        }


def summary(kind: str, tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The manifest's statistics of a set, from the tallies of its shards; at least one sample."""
    tallies = [tally for tally in tallies if tally["samples"]]
    total = {kind: sum(tally["samples"] for tally in tallies), "bytes": sum(tally["bytes"] for tally in tallies)}
    return total | (_latents(tallies, total[kind]) if kind == "latents" else _images(tallies, total[kind]))


def _images(tallies: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    return {
        "width": _summed_extent([tally["width"] for tally in tallies], count),
        "height": _summed_extent([tally["height"] for tally in tallies], count),
        "formats": _summed([tally["formats"] for tally in tallies]),
        "modes": _summed([tally["modes"] for tally in tallies]),
        "exif_rotated": sum(tally["rotated"] for tally in tallies),
    }


def _latents(tallies: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any]:
    formats = {f"{tally['dtype']}, {tally['shape']}" for tally in tallies}
    if len(formats) > 1:
        raise DataError(f"the latents are not all of one shape and dtype: {'; '.join(sorted(formats))}")
    shape, dtype = tallies[0]["shape"], tallies[0]["dtype"]
    values = count * math.prod(shape)
    mean = math.fsum(tally["sum"] for tally in tallies) / values
    variance = math.fsum(tally["squares"] for tally in tallies) / values - mean * mean
    # Six digits: the last ones of a sum depend on the processor's.
    rounded = (float(f"{value:.6g}") for value in (mean, math.sqrt(max(variance, 0.0))))
    return {"shape": shape, "dtype": dtype, **dict(zip(("mean", "std"), rounded, strict=True))}


def _extent(values: Sequence[int]) -> list[int]:
    return [min(values, default=0), max(values, default=0), sum(values)]


def _summed_extent(extents: Sequence[Sequence[int]], count: int) -> dict[str, float]:
    smallest, largest, sums = zip(*extents, strict=True)
    return {"smallest": min(smallest), "largest": max(largest), "mean": round(sum(sums) / count, 2)}


def _summed(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
