"""A folder of golden values: its npz files, and meta.json and metrics.json where it has them."""

from pathlib import Path
from typing import Any

import numpy as np

from dist_diffusion.errors import DataError
from dist_diffusion.storage import files
from golden_checks.report import MissingError

SUFFIXES = (".npz", ".json", ".md")
"""Of values, of their options, and of notes for people."""


def holds(entry: Path, suffix: str) -> bool:
    """Whether it is a file with this suffix."""
    return entry.suffix == suffix and entry.is_file()


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
    """The folder's files, and the names of `others` that no case reads.

    DataError where it holds no values, or where its JSON files are not of the shape that the cases read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder")
        self._path = path
        entries = sorted(path.iterdir())
        by_suffix = {suffix: [entry for entry in entries if holds(entry, suffix)] for suffix in SUFFIXES}
        known = {entry for held in by_suffix.values() for entry in held}
        self.others = [entry.name for entry in entries if entry not in known]
        self.stems = [file.stem for file in by_suffix[".npz"]]
        self.jsons = {file.stem: files.read_json(str(file)) for file in by_suffix[".json"]}
        self._check_mappings()
        if not self.stems and not self.jsons:
            raise DataError(f"{path} holds no golden values: expected npz files, meta.json or metrics.json")

    def _check_mappings(self) -> None:
        held = {f"{stem}.json": self.jsons[stem] for stem in ("meta", "metrics") if stem in self.jsons}
        if isinstance(held.get("meta.json"), dict):
            held["meta.json's nets"] = self.networks
            if isinstance(self.networks, dict):
                held |= {f"meta.json's nets, {name}": network for name, network in self.networks.items()}
        for name, content in held.items():
            if not isinstance(content, dict):
                raise DataError(f"{self._path}: {name} must be a mapping, but is {content!r:.80}")

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
