"""npz files whose bytes depend on their arrays alone, written as a stream."""

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dist_diffusion.errors import StorageError
from dist_diffusion.storage import files, publish

EPOCH = (1980, 1, 1, 0, 0, 0)
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError, TypeError, StorageError)
"""What reading a damaged zip raises; a flipped method or version gives a kind of RuntimeError."""


@dataclass(frozen=True)
class Streamed:
    """An array in pieces along its first axis."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Iterable[np.ndarray]


def publish_npz(path: str, arrays: dict[str, Streamed]) -> None:
    """Publishes arrays, holding one piece at a time."""
    with (
        publish.atomic_file(path) as temporary,
        files.failures("write", path),
        zipfile.ZipFile(temporary, "w", allowZip64=True) as archive,
    ):
        for name, array in arrays.items():
            _write_array(archive, f"{name}.npy", array)


def _write_array(archive: zipfile.ZipFile, name: str, array: Streamed) -> None:
    descr = np.lib.format.dtype_to_descr(array.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    rows = 0
    with archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        for piece in array.pieces:
            assert piece.shape[1:] == array.shape[1:] and piece.dtype == array.dtype
            stream.write(np.ascontiguousarray(piece).tobytes())
            rows += len(piece)
    assert rows == array.shape[0], f"{name}: {rows} rows of {array.shape[0]}"


def is_whole(path: str, rows: int) -> bool:
    """Whether the file is there, has images and perhaps labels, `rows` of each, and every checksum is right."""
    if not files.exists(path):
        return False
    try:
        # Checksums first: numpy parses an array's header before the checksum that covers it is known to be right.
        with files.open_read(path) as stream, zipfile.ZipFile(stream) as archive:
            if archive.testzip() is not None:
                return False
        with files.open_read(path) as stream, np.load(stream, allow_pickle=False) as content:
            lengths = {name: len(content[name]) for name in content.files}
    except DAMAGE:
        return False
    return lengths in ({"arr_0": rows}, {"arr_0": rows, "arr_1": rows})
