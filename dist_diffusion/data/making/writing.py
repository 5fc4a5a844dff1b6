"""One shard, made in a worker or in the parent: originals in, a tar and its record out. Torch-free."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from dist_diffusion.data import tars
from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.making import npy, records
from dist_diffusion.data.making.records import Record
from dist_diffusion.data.making.source import Original
from dist_diffusion.data.making.statistics import ImageTally, LatentTally
from dist_diffusion.data.making.treatment import Treatment
from dist_diffusion.data.manifest import INDEX_DTYPE, Shard
from dist_diffusion.storage import files, publish

_BUFFER = 1 << 20


@dataclass(frozen=True)
class Job:
    """A shard to make: `originals` are those from position `first` of the shuffled order on."""

    out: str
    number: int
    kind: str
    treatment: Treatment
    first: int
    key_digits: int
    originals: tuple[Original, ...]
    has_record: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `kept`: the shard was there and verified; `remade`: it was there and did not."""

    number: int
    originals: int
    skipped: tuple[dict[str, str], ...]
    kept: bool
    remade: bool


def make_shard(job: Job) -> Outcome:
    """Make the shard, unless a verified one is there."""
    if job.has_record:
        record = records.load(job.out, job.number)
        if records.verifies(job.out, record):
            return Outcome(job.number, len(job.originals), tuple(map(dict, record.skipped)), kept=True, remade=False)
    record = _Writer(job).write()
    records.save(job.out, record)
    return Outcome(job.number, len(job.originals), tuple(map(dict, record.skipped)), False, remade=job.has_record)


class _Writer:
    """A shard while it is written."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tally = LatentTally() if job.kind == "latents" else ImageTally()
        self._rows: list[tuple[int, int, int, int, int]] = []
        self._skipped: list[dict[str, str]] = []
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def write(self) -> Record:
        """All samples that can be used, then the archive's end."""
        samples = self._usable()
        first = next(samples, None)
        name = records.shard_name(self._job.number)
        if first is not None:
            path = files.join(self._job.out, name)
            with (
                publish.atomic_file(path) as temporary,
                files.failures("write", path),
                open(temporary, "wb", buffering=_BUFFER) as stream,
            ):
                self._write_sample(stream, *first)
                for sample in samples:
                    self._write_sample(stream, *sample)
                self._write(stream, tars.end(self._bytes))
        shard = Shard(name, len(self._rows), self._bytes, self._sha256.hexdigest())
        rows = np.array(self._rows, dtype=INDEX_DTYPE)
        return Record(self._job.number, shard, rows, tuple(self._skipped), self._tally.to_json())

    def _usable(self) -> Iterator[tuple[str, str, bytes, int]]:
        """Key, extension, bytes and label of each."""
        for position, original in enumerate(self._job.originals, start=self._job.first):
            try:
                data, extension = self._prepare(original)
            except UndecodableError as error:
                self._skipped.append({"file": original.name, "reason": str(error)})
            else:
                yield f"{position:0{self._job.key_digits}d}", extension, data, original.label

    def _prepare(self, original: Original) -> tuple[bytes, str]:
        data, extension = original.place.read(), original.extension
        if isinstance(self._tally, LatentTally):
            self._tally.add(npy.decode(data), len(data))
        else:
            data, extension, header = self._job.treatment.apply(data, extension)
            self._tally.add(header, len(data))
        return data, extension

    def _write_sample(self, stream: BinaryIO, key: str, extension: str, data: bytes, label: int) -> None:
        self._write(stream, tars.member(f"{key}.cls", str(label).encode()))
        self._rows.append((0, self._bytes + tars.BLOCK, len(data), label, zlib.crc32(data)))
        self._write(stream, tars.member(f"{key}.{extension}", data))

    def _write(self, stream: BinaryIO, data: bytes) -> None:
        stream.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
