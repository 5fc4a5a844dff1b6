"""What a finished shard leaves beside it until all are finished: all that index.npy and the manifest need of it."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_diffusion.data.manifest import INDEX_DTYPE, Shard
from dist_diffusion.storage import files, publish

_NAME = re.compile(r"shard-(\d{6,})\.json")


@dataclass(frozen=True)
class Record:
    """A shard, or the news that nothing of it could be used: then `shard.samples` is 0 and there is no file."""

    number: int
    shard: Shard
    rows: np.ndarray
    """INDEX_DTYPE; the shard's number is filled in when the index is put together."""
    skipped: tuple[Mapping[str, str], ...]
    tally: Mapping[str, Any]


def shard_name(number: int) -> str:
    """The shard's file name."""
    return f"shard-{number:06d}.tar"


def numbers(names: list[str]) -> set[int]:
    """Of the shards whose records are among the names."""
    return {int(match[1]) for match in map(_NAME.fullmatch, names) if match}


def path(out: str, number: int) -> str:
    """Where a shard's record lies."""
    return files.join(out, f"shard-{number:06d}.json")


def save(out: str, record: Record) -> None:
    """Write it; the shard must be there."""
    content = {
        "shard": vars(record.shard),
        "rows": base64.b64encode(record.rows.tobytes()).decode(),
        "skipped": [dict(entry) for entry in record.skipped],
        "tally": record.tally,
    }
    publish.write_bytes(path(out, record.number), json.dumps(content).encode())


def load(out: str, number: int) -> Record:
    """StorageError where it is not there."""
    content = files.read_json(path(out, number))
    return Record(
        number,
        Shard(**content["shard"]),
        np.frombuffer(base64.b64decode(content["rows"]), dtype=INDEX_DTYPE),
        tuple(content["skipped"]),
        content["tally"],
    )


def verifies(out: str, record: Record) -> bool:
    """Whether the shard is there and what the record says, by size and sha256."""
    shard_path = files.join(out, record.shard.name)
    if not record.shard.samples:
        return True
    if not files.exists(shard_path) or files.size(shard_path) != record.shard.bytes:
        return False
    return files.sha256(shard_path) == record.shard.sha256
