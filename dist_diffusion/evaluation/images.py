"""Where images to evaluate come from: an npz, a finished sample job, or a folder of shards."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from dist_diffusion.data import images as data_images
from dist_diffusion.data import manifest as manifests
from dist_diffusion.data import squares
from dist_diffusion.data.reader import Reader
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.evaluation.features import ahead
from dist_diffusion.sampling.job import is_job, merged_npz
from dist_diffusion.sampling.npz_images import NpzImages
from dist_diffusion.storage import files


class ImageSource(Protocol):
    """Square RGB images of one size, read as a stream."""

    path: str
    num_images: int
    image_size: int
    labels: np.ndarray | None
    """int64 (N,), or None where the source has none."""

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Uint8 NHWC, in order, each at most `batch_size` images; anew at every call."""

    def checksum(self) -> str:
        """Hex sha256 of the content."""


def open_images(path: str, image_size: int | None = None, limit: int | None = None) -> ImageSource:
    """An npz, a sample job's folder, or shards (a folder or its manifest.json).

    Of shards at most `limit` images are read, at `image_size`. DataError names the path; ConfigError where shards come
    without a size.
    """
    if not is_folder(path):
        return NpzImages(path)
    if is_job(path):
        return NpzImages(merged_npz(path))
    return ShardImages(path, image_size, limit)


def is_folder(path: str) -> bool:
    """Whether the path is a sample job or shards, not an npz."""
    return files.is_dir(path) or path.endswith(".json")


class ShardImages:
    """The first rows of a shard folder's index (its samples are shuffled), centre-cropped to `image_size`."""

    def __init__(self, path: str, image_size: int | None, limit: int | None = None) -> None:
        self.path = path
        self._manifest = manifests.load(path)
        self._index = manifests.index(self._manifest)
        if self._manifest.kind == "latents":
            raise DataError(f"{path} holds latents: images are needed here")
        if image_size is None:
            raise ConfigError(f"image_size is not set: say at which size the shards of {path} are read: image_size=N")
        self.image_size = image_size
        # None takes all.
        self.num_images = len(self._index[:limit])
        self.num_classes = len(self._manifest.classes)
        self.labels: np.ndarray | None = self._index["label"][: self.num_images].astype(np.int64)

    def batches(self, batch_size: int, first: int = 0, stride: int = 1) -> Iterator[np.ndarray]:
        """Uint8 NHWC, in order, of them every `stride`-th from number `first` on; decoded in threads.

        DataError names a damaged sample.
        """
        starts = range(first * batch_size, self.num_images, stride * batch_size)
        return ahead(self._decode, self._encoded(starts, batch_size))

    def checksum(self) -> str:
        """The manifest's: it identifies the shards' bytes."""
        return self._manifest.checksum

    def _encoded(self, starts: range, batch_size: int) -> Iterator[list[tuple[str, bytes]]]:
        reader = Reader(self._manifest, self._index)
        try:
            for start in starts:
                rows = range(start, min(start + batch_size, self.num_images))
                yield [(reader.describe(row), reader.image_bytes(row)) for row in rows]
        finally:
            reader.close()

    def _decode(self, encoded: list[tuple[str, bytes]]) -> np.ndarray:
        return np.stack([_decoded(where, data, self.image_size) for where, data in encoded])


def _decoded(where: str, data: bytes, image_size: int) -> np.ndarray:
    try:
        return data_images.to_uint8(squares.fit(data_images.decode(data), image_size))
    except data_images.UndecodableError as error:
        raise DataError(f"{where} cannot be decoded: {error}") from error
