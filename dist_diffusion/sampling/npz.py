"""npz files whose bytes depend on their arrays alone, written as a stream."""

import zipfile
from collections.abc import Iterable

import numpy as np

from dist_diffusion.storage import files, publish

EPOCH = (1980, 1, 1, 0, 0, 0)


def publish_npz(path: str, arrays: dict[str, tuple[tuple[int, ...], np.dtype, Iterable[np.ndarray]]]) -> None:
    """Publishes arrays, each given as (shape, dtype, pieces along the first axis), holding one piece at a time."""
    with publish.atomic_file(path) as temporary, files.failures("write", path):
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, (shape, dtype, pieces) in arrays.items():
                _write_array(archive, f"{name}.npy", shape, dtype, pieces)


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterable[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    rows = 0
    with archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_2_0(stream, header)
        for piece in pieces:
            assert piece.shape[1:] == shape[1:] and piece.dtype == dtype
            stream.write(np.ascontiguousarray(piece).tobytes())
            rows += len(piece)
    assert rows == shape[0], f"{name}: {rows} rows of {shape[0]}"


def is_whole(path: str) -> bool:
    """Whether the file is there and every array in it has its checksum."""
    if not files.exists(path):
        return False
    try:
        with files.open_read(path) as stream, zipfile.ZipFile(stream) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError):
        return False
