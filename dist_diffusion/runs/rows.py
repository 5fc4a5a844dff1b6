"""Files of JSON rows, each with its step, read while another process may be writing them."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from dist_diffusion.storage import files

_TAIL = 1 << 16


def last_row(path: str) -> dict[str, Any] | None:
    """The last whole row of a file of JSON rows, read from its end; None where there is none."""
    if not files.exists(path):
        return None
    with files.open_read(path) as stream:
        end = stream.seek(0, os.SEEK_END)
        length = _TAIL
        while True:
            start = max(0, end - length)
            stream.seek(start)
            # Before the first newline may be the end of a row, after the last the beginning of one.
            lines = stream.read(end - start).split(b"\n")[1 if start else 0 : -1]
            found = next(rows(reversed(lines)), None)
            if found is not None or not start:
                return found
            length *= 4


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Of those lines that are rows: a crash may have torn some."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row
