"""Images in an npz, as the ADM evaluator reads them: `arr_0` uint8 NHWC and, where there, `arr_1` integer labels."""

import hashlib
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

IMAGES, LABELS = "arr_0", "arr_1"
ZIP_MAGIC = b"PK\x03\x04"
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError)
LOCAL_HEADER = 30
"""Bytes before a member's name and extra field, whose two lengths are the last four of them."""
DIGEST_ROWS = 256


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
    """Square RGB images of one size, and their labels."""

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

    def rows_checksum(self, num: int) -> str:
        """Hex sha256 of the first `num` images and labels. All are read: DataError where the file is damaged."""
        digest = hashlib.sha256()
        for number, images in enumerate(self.batches(DIGEST_ROWS)):
            digest.update(images[: max(0, num - number * DIGEST_ROWS)].tobytes())
        if self.labels is not None:
            digest.update(self.labels[:num].tobytes())
        return digest.hexdigest()

    def pixels(self) -> np.ndarray:
        """All images, uint8 (N, size, size, 3). Mapped where the file is local and not compressed, so that only the
        rows used are read, without the checksum; else in memory.
        """
        if files.is_remote(self.path):
            return read_array(self.path, IMAGES)
        with files.open_read(self.path) as file:
            member = zipfile.ZipFile(file).getinfo(f"{IMAGES}.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                return read_array(self.path, IMAGES)
            file.seek(member.header_offset)
            lengths = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
            file.seek(member.header_offset + LOCAL_HEADER + sum(lengths))
            shape = _image_shape(file, self.path)
            return np.memmap(self.path, np.uint8, "r", file.tell(), shape)

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
