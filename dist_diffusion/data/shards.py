"""Make a shard folder: tar files by webdataset, then index.npy, then manifest.json. One source, one set of bytes."""

import hashlib
import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import webdataset

from dist_diffusion.data import images, manifest
from dist_diffusion.data.manifest import INDEX, INDEX_DTYPE, MANIFEST, Manifest, Shard
from dist_diffusion.data.sources import Original, Source
from dist_diffusion.draws import permutation
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.storage import files, publish

UNFINISHED = "UNFINISHED"
TAR_BLOCK = 512
_OWN_FILE = re.compile(rf"({re.escape(files.TEMPORARY_PREFIX)}.*-)?(shard-\d+\.tar|{INDEX}|{MANIFEST})")


def make(source: Source, out: str, samples_per_shard: int, seed: int, say: Callable[[str], None]) -> Manifest:
    """Write the source's samples, shuffled by `seed`, as shards of `samples_per_shard` into the folder `out`.

    Where `out` holds that very set already, nothing is written. A folder that holds anything else is refused
    (DataError), but what a killed run left is started again. Images that cannot be decoded are left out, said, and
    listed in the manifest.
    """
    if samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard={samples_per_shard} must be at least 1")
    identity = {**source.identity, "samples_per_shard": samples_per_shard, "seed": seed}
    if files.exists(files.join(out, MANIFEST)):
        return _existing(source, identity, out, say)
    with files.failures("prepare", out):
        _claim(out)
    writer = _Writer(source, out, samples_per_shard, seed, say)
    for entry in source.unusable:
        writer.skip(entry["file"], entry["reason"])
    writer.write_all()
    if not writer.rows:
        raise DataError("none of the source's images can be decoded: no shards were made")
    made = writer.publish(identity)
    _release(out)
    say(f"{made.num_samples:,} images in {len(made.shards)} shards, {len(made.skipped)} files left out: {out}")
    return made


class _Writer:
    """The shards, rows and omissions of one set while it is written."""

    def __init__(self, source: Source, out: str, samples_per_shard: int, seed: int, say: Callable[[str], None]) -> None:
        self._source = source
        self._out = out
        self._samples_per_shard = samples_per_shard
        self._order = permutation(seed, "make_shards", 0, len(source))
        self._key_digits = len(str(len(source) - 1))
        self._say = say
        self._start = time.monotonic()
        self.shards: list[Shard] = []
        self.rows: list[tuple[int, int, int, int, int]] = []
        self.skipped: list[dict[str, str]] = []

    def write_all(self) -> None:
        """Every decodable sample, in shuffled order."""
        originals = self._decodable()
        first = next(originals, None)
        while first is not None:
            first = self._write_shard(first, originals)

    def skip(self, name: str, reason: str) -> None:
        """Leave a file out, aloud."""
        self.skipped.append({"file": name, "reason": reason})
        self._say(f"left out {name}: {reason}")

    def publish(self, identity: dict[str, object]) -> Manifest:
        """Write index.npy and, last of all, the manifest that makes the set exist."""
        rows = np.array(self.rows, dtype=INDEX_DTYPE)
        stream = io.BytesIO()
        np.save(stream, rows)
        publish.write_bytes(files.join(self._out, INDEX), stream.getvalue())
        counts = np.bincount(rows["label"], minlength=len(self._source.classes)).tolist()
        for name, count in zip(self._source.classes, counts, strict=True):
            if not count:
                self._say(f"class {name} has no images")
        made = Manifest(
            folder=self._out,
            shards=tuple(self.shards),
            classes=self._source.classes,
            class_counts=tuple(counts),
            source=identity,
            index_file=INDEX,
            index_sha256=hashlib.sha256(stream.getvalue()).hexdigest(),
            skipped=tuple(self.skipped),
        )
        publish.write_json(files.join(self._out, MANIFEST), made.to_json())
        return made

    def _decodable(self) -> Iterator[Original]:
        for position in self._order.tolist():
            original = self._source[position]
            try:
                images.decode(original.data)
            except images.UndecodableError as error:
                self.skip(original.name, str(error))
            else:
                yield original

    def _write_shard(self, first: Original, originals: Iterator[Original]) -> Original | None:
        """One shard that begins with `first`; returns the sample that the next one begins with."""
        name = f"shard-{len(self.shards):06d}.tar"
        begin = len(self.rows)
        following: Original | None = first
        path = files.join(self._out, name)
        with files.failures("write", path), open(path, "wb") as file:
            stream = _Measured(file)
            with webdataset.TarWriter(stream, user="", group="", mtime=0, encoder=False, compress=False) as tar:
                while following is not None and len(self.rows) - begin < self._samples_per_shard:
                    self._write_sample(tar, following)
                    following = next(originals, None)
            file.flush()
            os.fsync(file.fileno())
        self.shards.append(Shard(name, len(self.rows) - begin, stream.bytes, stream.sha256.hexdigest()))
        self._report(name)
        return following

    def _write_sample(self, tar: webdataset.TarWriter, original: Original) -> None:
        key = f"{len(self.rows):0{self._key_digits}d}"
        tar.write({"__key__": key, "cls": str(original.label).encode(), original.extension: original.data})
        length = len(original.data)
        # The tar's own count of what it has written: the image is the last member, padded to whole blocks.
        offset = tar.tarstream.offset - -(-length // TAR_BLOCK) * TAR_BLOCK
        self.rows.append((len(self.shards), offset, length, original.label, zlib.crc32(original.data)))

    def _report(self, name: str) -> None:
        done = len(self.rows) + len(self.skipped)
        rate = done / (time.monotonic() - self._start)
        self._say(f"{name}: {len(self.rows):,} of {len(self._source):,} images, {rate:,.0f} img/s")


class _Measured:
    """A file for writing that knows the size and sha256 of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Pass the bytes on."""
        self.bytes += len(data)
        self.sha256.update(data)
        return self._file.write(data)


def _existing(source: Source, identity: dict[str, object], out: str, say: Callable[[str], None]) -> Manifest:
    found = manifest.load(out)
    manifest.index(found)
    if json.dumps(found.source, sort_keys=True) != json.dumps(identity, sort_keys=True) or (
        found.classes != source.classes
    ):
        raise DataError(
            f"{out} holds another set: made from {dict(found.source)}, classes {_listed(found.classes)}, and not from "
            f"{identity}, classes {_listed(source.classes)}. Choose another folder or remove that one"
        )
    _release(out)
    say(f"{out} already holds this set: {found.num_samples:,} images in {len(found.shards)} shards")
    return found


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")


def _claim(out: str) -> None:
    """An empty folder with a mark in it, so that a rerun knows that what it finds there is an unfinished set."""
    if files.is_remote(out):
        raise DataError(f"{out}: shards are written to a local file system for now; copy the finished folder")
    os.makedirs(out, exist_ok=True)
    names = os.listdir(out)
    if UNFINISHED in names:
        for name in filter(_OWN_FILE.fullmatch, names):
            os.remove(files.join(out, name))
    elif names:
        raise DataError(f"{out} is not empty and holds no {MANIFEST}: choose another folder")
    publish.write_bytes(files.join(out, UNFINISHED), b"tools/make_shards.py is at work here, or was stopped\n")


def _release(out: str) -> None:
    """The manifest is there: the mark can go."""
    with suppress(FileNotFoundError):
        os.remove(files.join(out, UNFINISHED))
