"""A shard folder's table of contents: manifest.json (what the shards are) and index.npy (where each sample lies)."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_diffusion.errors import DataError
from dist_diffusion.storage import cache, files

MANIFEST = "manifest.json"
INDEX = "index.npy"
FORMAT = 1
INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("crc32", "<u4")])
KINDS = ("images", "latents")
HOW_TO_MAKE = "make a set with: python tools/make_shards.py SOURCE OUT"


@dataclass(frozen=True)
class Shard:
    """One tar file; sha256 in hex."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds. `shards` is the order of index.npy's rows; nothing else depends on that order."""

    folder: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    source: Mapping[str, Any]
    index_file: str
    index_sha256: str
    skipped: tuple[Mapping[str, str], ...] = ()
    kind: str = "images"
    """Or "latents": then a sample is an npy array, all of one shape and dtype."""
    statistics: Mapping[str, Any] = field(default_factory=dict)
    """Of the images or latents, see docs/data.md; empty in a manifest that an earlier version wrote."""
    format: int = FORMAT

    @property
    def num_samples(self) -> int:
        """Samples of all shards together."""
        return sum(shard.samples for shard in self.shards)

    @property
    def identities(self) -> tuple[tuple[str, int], ...]:
        """(name and checksum, samples) of each shard in the order of the rows: what the data order is made from."""
        return tuple((f"{shard.name} {shard.sha256}", shard.samples) for shard in self.shards)

    @property
    def checksum(self) -> str:
        """The hex sha256 that identifies the data wherever the folder lies: over the sorted names and checksums."""
        lines = sorted(f"{shard.name} {shard.sha256}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return {
            "format": self.format,
            "kind": self.kind,
            "shards": [vars(shard) for shard in self.shards],
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "statistics": dict(self.statistics),
            "source": dict(self.source),
            "skipped": [dict(entry) for entry in self.skipped],
            "index": {"file": self.index_file, "sha256": self.index_sha256},
        }


def load(path: str) -> Manifest:
    """Read a shard folder's manifest (the folder, or its manifest.json) and check each shard's size against it.

    DataError names the folder or shard that is missing or differs.
    """
    manifest = read(path)
    sizes = files.sizes(manifest.folder, [shard.name for shard in manifest.shards])
    for shard in manifest.shards:
        problem = size_problem(manifest, shard, sizes.get(shard.name))
        if problem:
            raise DataError(problem)
    return manifest


def read(path: str) -> Manifest:
    """The manifest alone, without a look at the shards."""
    return _parse(*_read(path))


def size_problem(manifest: Manifest, shard: Shard, size: int | None) -> str | None:
    """What is wrong with a shard that has so many bytes, None where it is missing; None where nothing is."""
    path = files.join(manifest.folder, shard.name)
    if size is None:
        return f"shard {path} is missing: restore it, or {HOW_TO_MAKE}"
    if size == shard.bytes:
        return None
    return f"shard {path} has {size} bytes, but {MANIFEST} says {shard.bytes}: restore it, or {HOW_TO_MAKE}"


def index(manifest: Manifest) -> np.ndarray:
    """index.npy, memory-mapped, INDEX_DTYPE: one row a sample, the shards' rows end to end in the manifest's order.

    A remote one is fetched into this host's cache. DataError where it is not the manifest's, or a label no class's.
    """
    path = files.join(manifest.folder, manifest.index_file)
    rows = _rows(path, manifest)
    if rows.dtype != INDEX_DTYPE or rows.shape != (manifest.num_samples,):
        raise DataError(
            f"{path} has {len(rows)} rows of {rows.dtype}, but the shards of {MANIFEST} hold {manifest.num_samples} "
            f"samples: the two are not of one set; {HOW_TO_MAKE}"
        )
    if not files.is_remote(path) and files.sha256(path) != manifest.index_sha256:
        raise DataError(f"{path} is not the file that {MANIFEST} describes (its sha256 differs); {HOW_TO_MAKE}")
    _check_labels(path, manifest, rows["label"])
    return rows


def _rows(path: str, manifest: Manifest) -> np.ndarray:
    if files.is_remote(path):
        # The mapping lives on where the cache evicts the file.
        held = cache.from_environment().open(path, manifest.index_sha256)
        try:
            return _mapped(held.path, path)
        finally:
            held.close()
    if not files.exists(path):
        raise DataError(f"{path} is missing; {HOW_TO_MAKE}")
    return _mapped(path, path)


def _mapped(path: str, name: str) -> np.ndarray:
    try:
        with files.failures("read", name):
            rows = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise DataError(f"{name} is damaged ({error}); {HOW_TO_MAKE}") from error
    # A plain array over the same mapping: np.memmap's own indexing is several times slower.
    return rows.view(np.ndarray)


def _check_labels(path: str, manifest: Manifest, labels: np.ndarray) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(manifest.classes)))
    if not len(wrong):
        return
    first = int(wrong[0])
    begins = np.cumsum([0, *(shard.samples for shard in manifest.shards)])
    number = int(np.searchsorted(begins, first, side="right")) - 1
    raise DataError(
        f"{path}: sample {first - begins[number]} of shard {manifest.shards[number].name} has label {labels[first]}, "
        f"but the classes of {MANIFEST} are 0 ... {len(manifest.classes) - 1} ({len(wrong)} such samples); "
        f"{HOW_TO_MAKE}"
    )


def _read(path: str) -> tuple[str, bytes]:
    """The manifest's path and content."""
    if path.endswith(".json"):
        if not files.exists(path):
            raise DataError(f"manifest {path} does not exist; {HOW_TO_MAKE}")
        return path, files.read_bytes(path)
    manifest_path = files.join(path, MANIFEST)
    if files.exists(manifest_path):
        return manifest_path, files.read_bytes(manifest_path)
    if not files.is_dir(path):
        raise DataError(f"shard folder {path} does not exist; {HOW_TO_MAKE}")
    state = f"holds no {MANIFEST}" if files.list_names(path) else "is empty"
    raise DataError(f"shard folder {path} {state}; {HOW_TO_MAKE}")


def _parse(path: str, content: bytes) -> Manifest:
    try:
        raw = json.loads(content)
        if raw["format"] != FORMAT:
            raise DataError(f"{path} is of format {raw['format']!r}; this version reads format {FORMAT}")
        kind = raw.get("kind", "images")
        if kind not in KINDS:
            raise DataError(f"{path} is of the kind {kind!r}; this version reads {' and '.join(KINDS)}")
        return Manifest(
            folder=os.path.dirname(path) or ".",
            shards=tuple(_parse_shard(path, entry) for entry in raw["shards"]),
            classes=tuple(str(name) for name in raw["classes"]),
            class_counts=tuple(int(count) for count in raw["class_counts"]),
            source=dict(raw["source"]),
            skipped=tuple({"file": entry["file"], "reason": entry["reason"]} for entry in raw["skipped"]),
            kind=kind,
            statistics=dict(raw.get("statistics", {})),
            index_file=_plain_name(path, raw["index"]["file"]),
            index_sha256=str(raw["index"]["sha256"]),
        )
    except KeyError as error:
        raise DataError(f"{path} is malformed: the key {error} is missing; {HOW_TO_MAKE}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is malformed ({error}); {HOW_TO_MAKE}") from error


def _parse_shard(path: str, entry: Mapping[str, Any]) -> Shard:
    name = _plain_name(path, entry["name"])
    return Shard(name, int(entry["samples"]), int(entry["bytes"]), bytes.fromhex(entry["sha256"]).hex())


def _plain_name(path: str, name: str) -> str:
    """A manifest can come from anywhere: what it names must lie beside it."""
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise DataError(f"{path} is malformed: {name!r} is not the name of a file in its folder")
    return name
