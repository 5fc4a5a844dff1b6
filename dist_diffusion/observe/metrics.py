"""Files of JSON rows, each with its step: the machine-readable account of a run."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dist_diffusion.storage import files, publish


class MetricsFile:
    """Appends rows, flushed at once: a killed process loses none."""

    def __init__(self, path: str) -> None:
        with files.failures("write", path):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row as a line of JSON and flushes it."""
        with files.failures("write", self._path):
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Closes the file. A row that could not be written was told of by `append`: it must not end the run again."""
        with suppress(OSError):
            self._stream.close()


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
