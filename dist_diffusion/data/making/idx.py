"""A pair of IDX files: MNIST, Fashion-MNIST."""

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dist_diffusion.data.making.source import Original
from dist_diffusion.data.png import encode
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.storage import files

PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Pixels:
    """Grey values, uint8 [H, W], which become a PNG file."""

    values: np.ndarray

    def read(self) -> bytes:
        """The PNG file."""
        return encode(self.values)


class IdxFiles:
    """A pair of IDX files (grey images, labels), plain or gzipped; images become PNG. Labels name the classes."""

    kind = "images"

    def __init__(self, folder: str, split: str, class_names: Sequence[str] | None = None) -> None:
        images_path = _path(folder, f"{PREFIXES[split]}-images-idx3-ubyte")
        labels_path = _path(folder, f"{PREFIXES[split]}-labels-idx1-ubyte")
        self._images = _read(images_path, num_dimensions=3)
        self._labels = _read(labels_path, num_dimensions=1)
        if len(self._images) != len(self._labels) or not len(self._images):
            raise DataError(
                f"{images_path} holds {len(self._images)} images, {labels_path} {len(self._labels)} labels: "
                f"there must be as many, and at least one"
            )
        num_classes = int(self._labels.max()) + 1
        if class_names is not None and len(class_names) < num_classes:
            raise ConfigError(f"--classes names {len(class_names)} classes, but {labels_path} has {num_classes}")
        self._file = os.path.basename(images_path)
        self.unusable: list[Mapping[str, str]] = []
        self.classes = tuple(map(str, range(num_classes)) if class_names is None else class_names)
        self.identity = {
            "kind": "IDX",
            "split": split,
            "images": len(self),
            "sha256": hashlib.sha256(self._images.tobytes() + self._labels.tobytes()).hexdigest(),
        }

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> Original:
        name = f"{self._file}[{position}]"
        return Original(name, "png", int(self._labels[position]), Pixels(self._images[position]))


def _path(folder: str, name: str) -> str:
    candidates = [files.join(folder, name), files.join(folder, f"{name}.gz")]
    for path in candidates:
        if files.exists(path):
            return path
    raise DataError(f"neither {candidates[0]} nor {candidates[1]} exists")


def _read(path: str, num_dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file: magic 0, 0, 8 (uint8), dimensions; big-endian sizes; values."""
    content = files.read_bytes(path)
    try:
        if path.endswith(".gz"):
            content = gzip.decompress(content)
        magic, *shape = struct.unpack_from(f">I{num_dimensions}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if magic != 0x800 + num_dimensions:
        raise DataError(f"{path} is no IDX file of uint8 values in {num_dimensions} dimensions (magic {magic:#010x})")
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions)
    if values.size != np.prod(shape, dtype=object):
        raise DataError(f"{path} is damaged: its header says {shape}, but {values.size} values follow")
    return values.reshape(shape)
