"""What the metrics need of one set of images; computed once, it can be saved as a reference for many evaluations."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dist_diffusion.errors import DataError
from dist_diffusion.evaluation import metrics
from dist_diffusion.evaluation.features import extract
from dist_diffusion.evaluation.images import ImageSource, is_folder, open_images
from dist_diffusion.evaluation.networks import FeatureNetwork, efficientnet_lite0
from dist_diffusion.sampling.npz_images import IMAGES, arrays, read_array
from dist_diffusion.storage import files, publish

SPLIT_SIZE = 5000
"""Images of a split of the score: ten splits at 50,000 images, one below 10,000."""


@dataclass(frozen=True)
class Statistics:
    """One set of images seen through one network. An npz of it has an array for each field."""

    network: str
    source: str
    checksum: str
    """Hex sha256 of what the source held."""
    image_size: int
    """Pixels of a side before the network's own resizing."""
    score: float
    score_std: float
    mu: np.ndarray
    """float64 (D,)"""
    sigma: np.ndarray
    """float64 (D, D)"""
    features: np.ndarray
    """float32 (N, D)"""
    squared_radii: np.ndarray
    """float64 (N,): the balls of precision and recall."""

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.features)


ARRAYS = {field.name for field in fields(Statistics)}


def compute(source: ImageSource, network: FeatureNetwork, batch_size: int) -> Statistics:
    """Reads all of the source. DataError names it where features are not finite or images too few."""
    if source.num_images <= metrics.NEIGHBOURS:
        raise DataError(f"{source.path} holds {source.num_images} images: too few to evaluate")
    features, logits = extract(network, source.batches(batch_size))
    mu, sigma = metrics.gaussian(features, source.path)
    score, score_std = metrics.score(logits, max(1, len(logits) // SPLIT_SIZE), source.path)
    return Statistics(
        network=network.name,
        source=source.path,
        checksum=source.checksum(),
        image_size=source.image_size,
        score=score,
        score_std=score_std,
        mu=mu,
        sigma=sigma,
        features=features,
        squared_radii=metrics.squared_radii(features, source.path),
    )


def make(path: str, out: str, num: int | None, image_size: int, batch_size: int, say: Callable[[str], None]) -> None:
    """Saves the statistics of shards (the first `num` images, at `image_size`) or of an npz.

    DataError where the source has other than `num` images or `image_size`.
    """
    source = open_images(path, image_size, num)
    if num not in (None, source.num_images) or source.image_size != image_size:
        raise DataError(
            f"{path} gives {source.num_images} images of {source.image_size} px, not the {num or source.num_images} "
            f"of {image_size} px asked for"
        )
    say(f"reading {source.num_images} images of {path} at {image_size} px")
    save(compute(source, efficientnet_lite0(), batch_size), out)
    say(f"written to {out}")


def save(statistics: Statistics, path: str) -> None:
    """Publishes the npz whole or not at all."""
    with publish.atomic_file(path) as temporary, files.failures("write", path), open(temporary, "wb") as file:
        arrays_by_name: dict[str, Any] = {name: np.asarray(getattr(statistics, name)) for name in ARRAYS}
        np.savez(file, **arrays_by_name)


def open_side(
    path: str, network: FeatureNetwork, image_size: int | None, limit: int | None
) -> Statistics | ImageSource:
    """One side of a comparison: saved statistics, or what `open_images` takes. An npz with both is read for its images.

    DataError names the path.
    """
    if not is_folder(path) and "mu" in (names := arrays(path)) and IMAGES not in names:
        return load(path, network)
    return open_images(path, image_size, limit)


def load(path: str, network: FeatureNetwork) -> Statistics:
    """Saved statistics. DataError where they are another tool's or another network's."""
    missing = ARRAYS - arrays(path)
    if missing:
        raise DataError(
            f"{path} holds statistics without {', '.join(sorted(missing))}: of which network and images they are is "
            "not known; make them with tools/make_reference.py"
        )
    values: dict[str, Any] = {name: read_array(path, name) for name in ARRAYS}
    statistics = Statistics(**{name: value if value.ndim else value.item() for name, value in values.items()})
    if statistics.network != network.name:
        raise DataError(f"{path} holds statistics of the network {statistics.network}, not of {network.name}")
    return statistics
