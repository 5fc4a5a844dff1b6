"""From the records of finished shards to index.npy and manifest.json; and what is tidied up then."""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from dist_diffusion.data.making import records, statistics
from dist_diffusion.data.making.records import Record
from dist_diffusion.data.making.source import Source
from dist_diffusion.data.manifest import INDEX, MANIFEST, Manifest
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files, publish

UNFINISHED = "UNFINISHED"
"""The mark of a folder in which shards are being made."""
_TEMPORARY = re.compile(
    rf"{re.escape(files.TEMPORARY_PREFIX)}.*-(shard-\d+\.(tar|json)|{INDEX}|{MANIFEST}|{UNFINISHED})"
)


def assemble(source: Source, identity: dict[str, object], out: str, found: Sequence[Record]) -> Manifest:
    """Write index.npy and, last of all, the manifest that makes the set exist."""
    used = [record for record in found if record.shard.samples]
    if not used:
        example = found[0].skipped[0]
        raise DataError(
            f"none of the source's {source.kind} can be used, such as {example['file']} ({example['reason']}): no set "
            f"was made; remove {out}"
        )
    index, checksum = write_index(out, [record.rows for record in used])
    made = Manifest(
        folder=out,
        shards=tuple(record.shard for record in used),
        classes=source.classes,
        class_counts=tuple(np.bincount(index["label"], minlength=len(source.classes)).tolist()),
        source=identity,
        index_file=INDEX,
        index_sha256=checksum,
        skipped=(*source.unusable, *(entry for record in found for entry in record.skipped)),
        kind=source.kind,
        statistics=statistics.summary(source.kind, [record.tally for record in used]),
    )
    publish.write_json(files.join(out, MANIFEST), made.to_json())
    return made


def write_index(out: str, rows: Sequence[np.ndarray]) -> tuple[np.ndarray, str]:
    """Publish index.npy of shards' rows, numbering the shards; the whole index and the file's sha256."""
    index = np.concatenate(rows)
    index["shard"] = np.repeat(np.arange(len(rows)), [len(part) for part in rows])
    stream = io.BytesIO()
    np.save(stream, index)
    publish.write_bytes(files.join(out, INDEX), stream.getvalue())
    return index, hashlib.sha256(stream.getvalue()).hexdigest()


def tidy(out: str) -> None:
    """The manifest is there: what the making left beside it can go."""
    for number in records.numbers(files.list_names(out)):
        publish.remove(records.path(out, number))
    publish.remove(files.join(out, UNFINISHED))
    if not files.is_remote(out):
        for name in filter(_TEMPORARY.fullmatch, os.listdir(out)):
            with suppress(FileNotFoundError):
                os.remove(files.join(out, name))
