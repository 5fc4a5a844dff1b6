"""Precomputed latents: latents.npy [N, C, H, W] and labels.npy [N]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dist_diffusion.data.making import labels as labelling
from dist_diffusion.data.making.npy import encode
from dist_diffusion.data.making.source import Original
from dist_diffusion.data.samples import LATENT
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

LATENTS, LABELS = "latents.npy", "labels.npy"
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Row:
    """One row of an array in a file."""

    path: str
    row: int

    def read(self) -> bytes:
        """The row as a file of its own."""
        return encode(_kept(self.path)[self.row])


class Arrays:
    """A folder with latents.npy, float16 or float32 [N, C, H, W], and labels.npy, integers [N]."""

    kind = "latents"

    def __init__(self, folder: str, class_names: Sequence[str] | None = None) -> None:
        self._path, labels_path = files.join(folder, LATENTS), files.join(folder, LABELS)
        latents, labels = _mapped(self._path), _mapped(labels_path)
        if latents.ndim != 4 or str(latents.dtype) not in DTYPES:
            raise DataError(f"{self._path} is {_described(latents)}; wanted: {' or '.join(DTYPES)}, [N, C, H, W]")
        if labels.shape != latents.shape[:1] or labels.dtype.kind not in "iu" or not len(labels):
            raise DataError(f"{labels_path} is {_described(labels)}; wanted: integers, [{len(latents)}], at least one")
        found = labelling.from_texts(list(map(str, labels.tolist())), lambda i: f"{labels_path}[{i}]", class_names)
        self._labels = found.values
        self.classes = found.classes
        self.unusable: list[Mapping[str, str]] = []
        self.identity = {
            "kind": "arrays",
            "latents": len(self),
            "sha256": files.sha256(self._path),
            "labels": files.sha256(labels_path),
        }

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int) -> Original:
        return Original(f"{LATENTS}[{position}]", LATENT, int(self._labels[position]), Row(self._path, position))


_kept = lru_cache(maxsize=1)(lambda path: _mapped(path))


def _mapped(path: str) -> np.ndarray:
    try:
        with files.failures("read", path):
            return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no npy array, or is damaged: {error}") from error


def _described(array: np.ndarray) -> str:
    return f"{array.dtype}, {list(array.shape)}"
