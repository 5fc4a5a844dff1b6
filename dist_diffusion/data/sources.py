"""Where shards are made from: a tree of class folders, or a pair of IDX files."""

import gzip
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dist_diffusion.data.png import encode_grey
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.storage import files

# All sort after "cls": the image is the last member of its sample.
EXTENSIONS = ("gif", "jpeg", "jpg", "png", "webp")
IDX_PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Original:
    """One image file as it enters a shard. `name` is for messages, `extension` without the dot."""

    name: str
    extension: str
    data: bytes
    label: int


class Source(Protocol):
    """Labelled images in a fixed order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels' names."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this source from another, wherever it lies: goes into the manifest."""

    @property
    def unusable(self) -> Sequence[Mapping[str, str]]:
        """Files that are no images by their name: {file, reason}."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Original: ...


class ClassFolders:
    """A folder whose sub-folders are the classes, in sorted order, and hold image files, kept byte for byte."""

    def __init__(self, folder: str, class_names: Sequence[str] | None = None) -> None:
        self._folder = folder
        names = files.list_names(folder)
        class_folders = [name for name in names if files.is_dir(files.join(folder, name))]
        stray = [name for name in names if name not in set(class_folders)]
        self.unusable = [{"file": name, "reason": "not in a class folder"} for name in stray]
        self._entries: list[tuple[str, int]] = []
        for label, name in enumerate(class_folders):
            self._add_class(name, label)
        if not self._entries:
            raise DataError(
                f"{folder} holds no images: SOURCE is the folder whose sub-folders are the classes (as .../train), "
                f"with {', '.join(EXTENSIONS)} files in them, or a folder of IDX files"
            )
        if class_names is not None and len(class_names) != len(class_folders):
            raise ConfigError(f"--classes names {len(class_names)} classes, but {folder} has {len(class_folders)}")
        self.classes = tuple(class_folders if class_names is None else class_names)
        self.identity = {"kind": "class folders", "images": len(self), "sha256": self._listing_sha256()}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, position: int) -> Original:
        name, label = self._entries[position]
        return Original(name, _extension(name), files.read_bytes(files.join(self._folder, name)), label)

    def _add_class(self, class_name: str, label: int) -> None:
        folder = files.join(self._folder, class_name)
        with files.failures("list", folder), os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{class_name}/{entry.name}"
            if entry.is_dir():
                raise DataError(
                    f"class folder {folder} holds a folder ({entry.name}): "
                    f"SOURCE is the folder whose sub-folders are the classes (as .../train)"
                )
            if _extension(name) in EXTENSIONS:
                self._entries.append((name, label))
            else:
                self.unusable.append({"file": name, "reason": f"not one of {', '.join(EXTENSIONS)}"})

    def _listing_sha256(self) -> str:
        """Over names and sizes: telling one tree from another must not take reading it."""
        state = hashlib.sha256()
        for name, _ in self._entries:
            line = f"{name}\0{files.size(files.join(self._folder, name))}\n"
            state.update(line.encode(errors="surrogateescape"))
        return state.hexdigest()


class IdxFiles:
    """A pair of IDX files (grey images, labels), plain or gzipped; images become PNG. Labels name the classes."""

    def __init__(self, folder: str, split: str, class_names: Sequence[str] | None = None) -> None:
        images_path = _idx_path(folder, f"{IDX_PREFIXES[split]}-images-idx3-ubyte")
        labels_path = _idx_path(folder, f"{IDX_PREFIXES[split]}-labels-idx1-ubyte")
        self._images = _read_idx(images_path, num_dimensions=3)
        self._labels = _read_idx(labels_path, num_dimensions=1)
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
        data = encode_grey(self._images[position])
        return Original(f"{self._file}[{position}]", "png", data, int(self._labels[position]))


def open_source(folder: str, split: str | None = None, class_names: Sequence[str] | None = None) -> Source:
    """The source that a folder holds: IDX files where there are any, else class folders."""
    if not files.is_dir(folder):
        raise DataError(f"source folder {folder} does not exist")
    if any("-idx3-ubyte" in name for name in files.list_names(folder)):
        return IdxFiles(folder, split or "train", class_names)
    if split is not None:
        raise ConfigError(f"--split chooses between IDX files, and {folder} holds none: name the split's own folder")
    return ClassFolders(folder, class_names)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _idx_path(folder: str, name: str) -> str:
    candidates = [files.join(folder, name), files.join(folder, f"{name}.gz")]
    for path in candidates:
        if files.exists(path):
            return path
    raise DataError(f"neither {candidates[0]} nor {candidates[1]} exists")


def _read_idx(path: str, num_dimensions: int) -> np.ndarray:
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
