"""Where images to evaluate come from: an npz, a finished sample job, or a folder of shards."""

import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

import numpy as np

from dist_diffusion.data import images as data_images
from dist_diffusion.data import manifest as manifests
from dist_diffusion.data.reader import Reader
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.evaluation.features import ahead
from dist_diffusion.storage import files

JOB = "job.json"
IMAGES, LABELS = "arr_0", "arr_1"
ZIP_MAGIC = b"PK\x03\x04"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)
MERGED = re.compile(r"samples_(\d+)x\d+x\d+x3\.npz")


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
    if files.exists(files.join(path, JOB)):
        return NpzImages(_merged(path))
    return ShardImages(path, image_size, limit)


def is_folder(path: str) -> bool:
    """Whether the path is a sample job or shards, not an npz."""
    return files.is_dir(path) or path.endswith(".json")


def arrays(path: str) -> set[str]:
    """The names of an npz's arrays. DataError where it is none."""
    if not files.exists(path):
        raise DataError(f"{path} does not exist")
    try:
        with files.open_read(path) as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                raise DataError(f"{path} is not an npz")
            archive = zipfile.ZipFile(file)
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is cut short or damaged: {error}") from error


@contextmanager
def _opened(path: str, name: str) -> Iterator[IO[bytes]]:
    try:
        with files.open_read(path) as file, zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
            yield stream
    except DAMAGED as error:
        raise DataError(f"{path}: {name} is damaged: {error}") from error


def read_array(path: str, name: str) -> np.ndarray:
    """One whole array of an npz; nothing is unpickled."""
    try:
        with files.open_read(path) as file, np.load(file, allow_pickle=False) as archive:
            return archive[name]
    except (*DAMAGED, ValueError) as error:
        raise DataError(f"{path}: {name} cannot be read: {error}") from error


class NpzImages:
    """`arr_0` (uint8 NHWC) and, where there, `arr_1` (integer labels), as the ADM evaluator reads them."""

    def __init__(self, path: str) -> None:
        self.path = path
        names = arrays(path)
        if IMAGES not in names:
            raise DataError(f"{path} holds {', '.join(sorted(names)) or 'nothing'}, but no images ({IMAGES})")
        with _opened(path, IMAGES) as stream:
            shape = _image_shape(stream, path)
        self.num_images, self.image_size = shape[:2]
        self.labels = _labels(path, self.num_images) if LABELS in names else None

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Uint8 NHWC, in order. DataError where the file is damaged."""
        with _opened(self.path, IMAGES) as stream:
            yield from self._read(stream, batch_size)

    def checksum(self) -> str:
        """Hex sha256 of the file."""
        return files.sha256(self.path)

    def _read(self, stream: IO[bytes], batch_size: int) -> Iterator[np.ndarray]:
        shape = _image_shape(stream, self.path)[1:]
        for start in range(0, self.num_images, batch_size):
            rows = min(batch_size, self.num_images - start)
            data = stream.read(rows * math.prod(shape))
            if len(data) < rows * math.prod(shape):
                raise DataError(f"{self.path}: {IMAGES} ends before image {start + rows}")
            yield np.frombuffer(data, dtype=np.uint8).reshape(rows, *shape)
        # The checksum of the zip is compared where its end is read.
        if stream.read(1):
            raise DataError(f"{self.path}: {IMAGES} is longer than its {self.num_images} images")


class ShardImages:
    """The first rows of a shard folder's index (its samples are shuffled), centre-cropped to `image_size`."""

    def __init__(self, path: str, image_size: int | None, limit: int | None = None) -> None:
        self.path = path
        self._manifest = manifests.load(path)
        self._index = manifests.index(self._manifest)
        if image_size is None:
            raise ConfigError(f"image_size is not set: say at which size the shards of {path} are read: image_size=N")
        self.image_size = image_size
        # None takes all.
        self.num_images = len(self._index[:limit])
        self.labels: np.ndarray | None = self._index["label"][: self.num_images].astype(np.int64)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Uint8 NHWC, in order; decoded in threads. DataError names a damaged sample."""
        return ahead(self._decode, self._encoded(batch_size))

    def checksum(self) -> str:
        """The manifest's: it identifies the shards' bytes."""
        return self._manifest.checksum

    def _encoded(self, batch_size: int) -> Iterator[list[tuple[str, bytes]]]:
        reader = Reader(self._manifest, self._index)
        for start in range(0, self.num_images, batch_size):
            rows = range(start, min(start + batch_size, self.num_images))
            yield [(reader.describe(row), reader.image_bytes(row)) for row in rows]

    def _decode(self, encoded: list[tuple[str, bytes]]) -> np.ndarray:
        return np.stack([_decoded(where, data, self.image_size) for where, data in encoded])


def _decoded(where: str, data: bytes, image_size: int) -> np.ndarray:
    try:
        return data_images.to_uint8(data_images.fit(data_images.decode(data), image_size))
    except data_images.UndecodableError as error:
        raise DataError(f"{where} cannot be decoded: {error}") from error


def _merged(job: str) -> str:
    """The merged npz of a sample job: the largest, where the job has grown."""
    found = {int(match[1]): name for name in files.list_names(job) if (match := MERGED.fullmatch(name))}
    if not found:
        raise DataError(f"sample job {job} is not finished (no merged npz): run its sample command again")
    return files.join(job, found[max(found)])


def _image_shape(stream: IO[bytes], path: str) -> tuple[int, ...]:
    """Reads an .npy header, leaving the stream at the first image."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_major, dtype = read(stream)
    except ValueError as error:
        raise DataError(f"{path}: {IMAGES} cannot be read: {error}") from error
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if dtype != np.uint8 or column_major or not square:
        raise DataError(f"{path}: {IMAGES} is {dtype} {shape}, not uint8 (N, size, size, 3) in C order")
    return shape


def _labels(path: str, num_images: int) -> np.ndarray:
    labels = read_array(path, LABELS)
    if labels.shape != (num_images,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: {LABELS} is {labels.dtype} {labels.shape}, not {num_images} integer labels")
    return labels.astype(np.int64)
