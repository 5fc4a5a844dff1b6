"""Files of JSON rows, each with its step: the machine-readable account of a run."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dist_diffusion.storage import files, publish


class MetricsFile:
    """Appends rows, flushed at once: a killed process loses none.

    Where the disk is full, which is told, rows wait in memory for the next: they are of steps after the last commit,
    which a kill loses in any case.
    """

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        with files.failures("write", path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._stream = open(path, "ab", buffering=0)  # noqa: SIM115
        self._path, self._say = path, say
        self._waiting: list[bytes] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row as a line of JSON, after those that wait."""
        self._waiting.append(json.dumps(row).encode() + b"\n")
        error = self._write()
        if error is not None and len(self._waiting) == 1:
            self._say(f"rows of {self._path} wait in memory, the run goes on: {error}")

    def close(self) -> None:
        """Closes the file, with a last attempt at rows that wait; nothing where it is closed."""
        if self._stream.closed:
            return
        error = self._write()
        if error is not None:
            self._say(f"{len(self._waiting)} rows of {self._path} are lost: {error}")
        with suppress(OSError):
            self._stream.close()

    def _write(self) -> OSError | None:
        """All that waits, or nothing of it: half a line would spoil the file."""
        data, descriptor = b"".join(self._waiting), self._stream.fileno()
        before = os.fstat(descriptor).st_size
        try:
            if self._stream.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, before)
            return error
        self._waiting = []
        return None


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file that was rewound; none where there is no file."""
    return [json.loads(line) for line in files.read_bytes(path).splitlines()] if files.exists(path) else []


def rewind(path: str, stale_path: str, step: int) -> int:
    """Moves the rows of later steps than `step` to the end of `stale_path`; returns how many.

    A line that a crash tore moves too. Killed in between, it leaves rows in both files, never in none.
    """
    if not files.exists(path):
        return 0
    with files.failures("read", path), open(path, "rb") as stream:
        lines = stream.readlines()
    kept = [line for line in lines if _is_up_to(line, step)]
    stale = [line for line in lines if not _is_up_to(line, step)]
    if stale:
        with files.failures("write", stale_path), open(stale_path, "ab") as stream:
            stream.writelines(line.rstrip(b"\n") + b"\n" for line in stale)
            stream.flush()
            os.fsync(stream.fileno())
        publish.write_bytes(path, b"".join(kept))
    return len(stale)


def _is_up_to(line: bytes, step: int) -> bool:
    """Whether a line is a whole row of a step up to `step`."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(row, dict) and row.get("step", step + 1) <= step
