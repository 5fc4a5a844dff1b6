"""A folder of golden values: its npz files, and meta.json and metrics.json where it has them."""

from pathlib import Path
from typing import Any

import numpy as np

from dist_diffusion.errors import DataError
from dist_diffusion.storage import files
from golden_checks.report import MissingError


class Archive:
    """One npz. It remembers what was read of it, so that nothing in it is passed over."""

    def __init__(self, path: Path) -> None:
        self.stem = path.stem
        try:
            with np.load(path, allow_pickle=False) as archive:
                self._arrays: dict[str, np.ndarray] = dict(archive)
        except Exception as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            raise MissingError(f"{self.stem}.npz has no {name}")
        self._read.add(name)
        return self._arrays[name]

    def names(self) -> list[str]:
        """All its arrays."""
        return sorted(self._arrays)

    def unread(self) -> list[str]:
        """The arrays that nobody asked for."""
        return sorted(set(self._arrays) - self._read)


class Folder:
    """The folder's files. DataError where it holds none."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        self._path = path
        self.stems = sorted(file.stem for file in path.glob("*.npz"))
        self.jsons = {file.stem: files.read_json(str(file)) for file in sorted(path.glob("*.json"))}
        if not self.stems and not self.jsons:
            raise DataError(f"{path} holds no golden values: expected npz files, meta.json or metrics.json")

    def archive(self, stem: str) -> Archive:
        """An npz. MissingError where there is none, DataError where it is damaged."""
        if stem not in self.stems:
            raise MissingError(f"{stem}.npz is not in the folder")
        return Archive(self._path / f"{stem}.npz")

    def meta(self, key: str) -> Any:
        """A value of meta.json."""
        if key not in self.jsons.get("meta", {}):
            raise MissingError(f"meta.json has no {key}")
        return self.jsons["meta"][key]

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The networks that meta.json describes, by the names of their files."""
        return self.jsons.get("meta", {}).get("nets", {})
