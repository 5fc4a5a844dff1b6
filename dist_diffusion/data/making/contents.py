"""What a shard holds, found by reading all of it: in a worker, torch-free."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_diffusion.data import images, tars
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.making import npy
from dist_diffusion.data.making.archives import reading
from dist_diffusion.data.making.source import MAX_BYTES
from dist_diffusion.data.making.statistics import ImageTally, LatentTally
from dist_diffusion.data.making.webdatasets import label_text
from dist_diffusion.data.manifest import INDEX_DTYPE
from dist_diffusion.data.samples import LATENT, LeftOut, Sample, samples
from dist_diffusion.data.tars import DamagedTarError, Read
from dist_diffusion.storage import files, publish


@dataclass(frozen=True)
class Look:
    """At a shard: of every image the header and end, or with `decode` all of it."""

    folder: str
    name: str
    decode: bool


@dataclass
class Contents:
    """Of a shard. The lists and `rows` have an entry a sample, in the order of the tar."""

    name: str
    bytes: int
    sha256: str
    damage: str = ""
    """Where the tar itself is damaged; what follows is then not there."""
    left_out: list[LeftOut] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    """Names of the images' (or latents') members."""
    texts: list[str | None] = field(default_factory=list)
    """What samples say of their labels."""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=INDEX_DTYPE))
    """Without shard number and label."""
    undecodable: dict[int, str] = field(default_factory=dict)
    tally: dict[str, Any] = field(default_factory=dict)
    """Of those whose header can be read."""

    @property
    def kind(self) -> str | None:
        """Of the samples: one of manifest.KINDS; None where there are none."""
        return _kind(self.images[0]) if self.images else None


def examine(look: Look) -> Contents:
    """Reads a whole shard. StorageError where it cannot be read."""
    path = files.join(look.folder, look.name)
    with _local(path) as local:
        contents = Contents(look.name, files.size(local), files.sha256(local))
        with reading(local) as (read, size):
            _Examination(contents, read, look.decode).run(f"shard {path}", size)
    return contents


class _Examination:
    """Of one tar."""

    def __init__(self, contents: Contents, read: Read, decode: bool) -> None:
        self._contents = contents
        self._read = read
        self._decode = decode
        self._tally: ImageTally | LatentTally | None = None
        self._rows: list[tuple[int, int, int, int, int]] = []

    def run(self, what: str, size: int) -> None:
        """Fills the contents in."""
        try:
            for found in samples(what, tars.walk(what, self._read, 0, size)):
                if isinstance(found, LeftOut):
                    self._contents.left_out.append(found)
                else:
                    self._add(found)
        except DamagedTarError as error:
            self._contents.damage = str(error)
        self._contents.rows = np.array(self._rows, dtype=INDEX_DTYPE)
        self._contents.tally = (self._tally or ImageTally()).to_json()

    def _add(self, sample: Sample) -> None:
        image = sample.image
        if image is None or image.size > MAX_BYTES:
            reason = "an image that is too large" if image else sample.reason
            self._contents.left_out.append(LeftOut(sample.key, f"it has {reason}"))
            return
        data = self._read(image.offset, image.size)
        self._contents.images.append(image.name)
        self._contents.texts.append(label_text(sample, self._read))
        self._rows.append((0, image.offset, len(data), 0, zlib.crc32(data)))
        try:
            self._look_at(image.name, data)
        except UndecodableError as error:
            self._contents.undecodable[len(self._rows) - 1] = str(error)

    def _look_at(self, name: str, data: bytes) -> None:
        if self._tally is None:
            self._tally = LatentTally() if self._contents.kind == "latents" else ImageTally()
        if _kind(name) != self._contents.kind:
            raise UndecodableError(f"it is not one of the {self._contents.kind} that the shard begins with")
        if isinstance(self._tally, LatentTally):
            self._tally.add(npy.decode(data), len(data))
        else:
            # Before it is decoded, so that looking closer changes no statistics.
            self._tally.add(images.inspect(data), len(data))
            if self._decode:
                images.decode(data)


@contextmanager
def _local(path: str) -> Iterator[str]:
    """A local file of the content; a remote one is fetched for the while."""
    if not files.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        with files.open_read(path) as remote, files.failures("write", local), open(local, "wb") as copy:
            shutil.copyfileobj(remote, copy, publish.COPY_BYTES)
        yield local


def _kind(name: str) -> str:
    return "latents" if name.lower().endswith(f".{LATENT}") else "images"
