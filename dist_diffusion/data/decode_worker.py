"""A decode process: `python -m dist_diffusion.data.decode_worker`, started by data/pool.py alone. Torch-free.

It is told where samples lie and how they are seen, reads and decodes them into memory that it shares with the rank,
and answers with the ones that it could not. It knows nothing of order, and ends with its rank.
"""

import json
import mmap
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from dist_diffusion.data.images import UndecodableError
from dist_diffusion.data.reader import PathReader
from dist_diffusion.data.views import see
from dist_diffusion.distributed.parent import die_with_parent

RECORD = np.dtype(
    [
        ("offset", "<u8"),
        ("length", "<u4"),
        ("crc32", "<u4"),
        ("shard", "<u4"),
        ("flip", "?"),
        ("cropped", "?"),
        ("crop", "<f8", (3,)),
    ]
)
"""One sample of a message: where it lies, and how it is seen."""
LAUNCHER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""They go to whole process groups; what they mean is the rank's to decide."""


class Memory:
    """The slabs that the rank shares: each holds the images of one step, uint8 [samples, size, size, 3]."""

    def __init__(self, descriptor: int, slab_bytes: int, shape: tuple[int, int, int, int]) -> None:
        self._descriptor, self._slab_bytes, self._shape = descriptor, slab_bytes, shape
        self._slabs: dict[int, np.ndarray] = {}

    def slab(self, number: int) -> np.ndarray:
        """Mapped when it is first asked for."""
        if number not in self._slabs:
            mapped = mmap.mmap(self._descriptor, self._slab_bytes, offset=number * self._slab_bytes)
            flat = np.frombuffer(mapped, dtype=np.uint8, count=int(np.prod(self._shape)))
            self._slabs[number] = flat.reshape(self._shape)
        return self._slabs[number]


def main(arguments: list[str]) -> None:
    """Serves the connection until the rank closes it."""
    parent, channel, descriptor, slab_bytes, samples, size = map(int, arguments)
    die_with_parent(parent)
    for number in LAUNCHER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    memory = Memory(descriptor, slab_bytes, (samples, size, size, 3))
    try:
        serve(Connection(channel), PathReader(), memory)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def serve(connection: Connection, reader: PathReader, memory: Memory) -> None:
    """Answers each message: a JSON line, then records. Ends by EOFError."""
    while True:
        line, _, packed = connection.recv_bytes().partition(b"\n")
        task = json.loads(line)
        if task["forget"]:
            reader.close_all()
        records = np.frombuffer(packed, dtype=RECORD)
        out = memory.slab(task["slab"])[task["first"] : task["first"] + len(records)]
        failed = {i: reason for i, reason in enumerate(decode_all(records, task["paths"], reader, out)) if reason}
        connection.send_bytes(json.dumps({"job": task["job"], "failed": failed}).encode())


def decode_all(records: np.ndarray, paths: dict[str, str], reader: PathReader, out: np.ndarray) -> list[str]:
    """Why each could not be decoded; empty for those that could."""
    listed = records.tolist()
    for offset, length, _, shard, *_ in listed:
        with suppress(OSError):  # reading will say so
            reader.expect(paths[str(shard)], offset, length)
    return [decode_one(record, paths, reader, out[i]) for i, record in enumerate(listed)]


def decode_one(record: tuple, paths: dict[str, str], reader: PathReader, out: np.ndarray) -> str:
    """Why it could not be decoded; empty if it could. What is wrong with the reading the rank finds out by itself."""
    offset, length, crc32, shard, flip, cropped, crop = record
    try:
        data = reader.read(paths[str(shard)], offset, length, crc32)
    except OSError as error:
        return str(error)
    if data is None:
        return "damaged"
    try:
        see(data, crop if cropped else None, flip, out)
    except UndecodableError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
