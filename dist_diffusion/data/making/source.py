"""What shards are made from: originals in a fixed order, each with its label and the place where its bytes lie."""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.shard_files import OpenFile
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

MAX_BYTES = 1 << 28
"""Of one original: far more than a photograph takes, far less than memory holds."""
_ZIP_HEADER = 30


class Place(Protocol):
    """Where an original's bytes lie. Small: it travels to a worker, which reads."""

    def read(self) -> bytes:
        """The bytes. UndecodableError where they alone are bad, StorageError or DataError where the source is."""


@dataclass(frozen=True)
class Original:
    """One image file or latent as it enters a shard. `name` is for messages, `extension` without the dot."""

    name: str
    extension: str
    label: int
    place: Place


class Source(Protocol):
    """Labelled originals in a fixed order."""

    @property
    def kind(self) -> str:
        """One of manifest.KINDS."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels' names."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells this source from another, wherever it lies: goes into the manifest."""

    @property
    def unusable(self) -> Sequence[Mapping[str, str]]:
        """Files that are left out before they are read: {file, reason}."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Original: ...


@dataclass(frozen=True)
class WholeFile:
    """A file of its own."""

    path: str

    def read(self) -> bytes:
        """All of it."""
        with files.failures("read", self.path), open(self.path, "rb") as stream:
            return stream.read()


@dataclass(frozen=True)
class Part:
    """Bytes of an archive that are kept as they are."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        """One pread."""
        return _read_at(self.path, self.offset, self.length)


@dataclass(frozen=True)
class ZipMember:
    """A member of a zip archive, stored or deflated; `header` is the byte at which its own header begins."""

    path: str
    header: int
    compressed: int
    length: int
    crc32: int
    deflated: bool

    def read(self) -> bytes:
        """Decompressed, to the length that the archive's directory gives and no further."""
        header = _read_at(self.path, self.header, _ZIP_HEADER)
        extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = _read_at(self.path, self.header + _ZIP_HEADER + extra, self.compressed)
        if self.deflated:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.length + 1)
            except zlib.error as error:
                raise UndecodableError(f"damaged in the archive: {error}") from error
        if len(data) != self.length or zlib.crc32(data) != self.crc32:
            raise UndecodableError("damaged in the archive: its length or crc32 is not what the directory says")
        return data


def why_not(name: str, size: int, extensions: Sequence[str]) -> str | None:
    """Why a file cannot be an original by its name and size; None where it can."""
    if extension_of(name) not in extensions:
        return f"not one of {', '.join(extensions)}"
    return f"{size:,} bytes are more than the {MAX_BYTES:,} that a file may have" if size > MAX_BYTES else None


def extension_of(name: str) -> str:
    """In lower case, without the dot."""
    return os.path.splitext(name)[1][1:].lower()


@lru_cache(maxsize=256)
def _opened(path: str) -> OpenFile:
    return OpenFile(path)


def _read_at(path: str, offset: int, length: int) -> bytes:
    with files.failures("read", path):
        data = os.pread(_opened(path).number, length, offset)
    if len(data) != length:
        raise DataError(f"{path} ends inside the {length} bytes at byte {offset}: it changed while it was read")
    return data
