"""Images in one archive that is never unpacked: a tar of class folders, ImageNet's tar of a tar a class, a zip."""

import os
import struct
import zipfile
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from dist_diffusion.data import tars
from dist_diffusion.data.making.folders import THREADS
from dist_diffusion.data.making.listing import Listing
from dist_diffusion.data.making.source import MAX_BYTES, Part, ZipMember
from dist_diffusion.data.tars import Member, Read
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

_ENCRYPTED = 0x1


def tar(path: str) -> Listing:
    """The files of a tar; those of a tar inside it count as lying in a folder of its name without ".tar"."""
    offsets = array("q")
    listing = Listing(path, "tar", lambda row: Part(path, offsets[row], listing.sizes[row]))
    with reading(path) as (read, size), ThreadPoolExecutor(THREADS) as pool:
        inner = []
        for member in tars.walk(f"archive {path}", read, 0, size):
            if member.is_file and member.name.endswith(".tar") and not tars.reason_against(member.name):
                inner.append(member)
            else:
                _add(listing, offsets, member, member.name)
        for outer, members in zip(inner, pool.map(lambda outer: _inside(path, read, outer), inner), strict=True):
            _check_one_class(path, outer, members)
            folder = outer.name.removesuffix(".tar")
            listing.folders.append(folder)
            for member in members:
                _add(listing, offsets, member, f"{folder}/{member.name.rpartition('/')[2]}")
    return listing


def zipped(path: str) -> Listing:
    """The files of a zip archive, by its directory."""
    try:
        with files.failures("read", path), zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    # What zipfile itself raises, for a version of the format that it does not know NotImplementedError; and what its
    # parsers of a damaged directory let through.
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(f"archive {path} is damaged or cut short ({error}): restore it or fetch it again") from error
    entries = [entry for entry in found if not entry.is_dir()]
    reasons = [_reason_against(entry) for entry in entries]
    members = [entry for entry, reason in zip(entries, reasons, strict=True) if not reason]
    # Plain numbers: a ZipInfo of each of a million members would take most of a gigabyte.
    table = np.array([(m.header_offset, m.compress_size, m.CRC, m.compress_type) for m in members], dtype=np.uint64)
    listing = Listing(path, "zip", lambda row: _zip_member(path, listing.sizes[row], *table[row].tolist()))
    folders = [entry.filename for entry in found if entry.is_dir()]
    listing.folders = [name.rstrip("/") for name in folders if not _reason_against_name(name)]
    for entry, reason in zip(entries, reasons, strict=True):
        if reason:
            listing.leave_out(entry.filename, reason)
        else:
            listing.add(entry.filename, entry.file_size)
    return listing


@contextmanager
def reading(path: str) -> Iterator[tuple[Read, int]]:
    """Reads at offsets of a local file, from any thread, and its size."""

    def read(offset: int, length: int) -> bytes:
        with files.failures("read", path):
            return os.pread(descriptor, length, offset)

    with files.failures("read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield read, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _inside(path: str, read: Read, outer: Member) -> list[Member]:
    what = f"archive {path}, in its member {outer.name},"
    return list(tars.walk(what, read, outer.offset, outer.offset + outer.size))


def _check_one_class(path: str, outer: Member, members: list[Member]) -> None:
    folders = sorted({member.name.rpartition("/")[0] for member in members if member.is_file})
    if len(folders) > 1:
        raise DataError(
            f"archive {path} holds {outer.name} with several folders in it (such as {', '.join(folders[:2])}): a tar "
            f"in a tar is one class; take {outer.name} out and name it"
        )


def _add(listing: Listing, offsets: array, member: Member, name: str) -> None:
    reason = _reason_against_name(member.name)
    if member.is_folder:
        if not reason:
            listing.folders.append(name.rstrip("/"))
        return
    if not member.is_file:
        reason = "it is a link or a device, not a file"
    if reason:
        listing.leave_out(member.name, reason)
        return
    offsets.append(member.offset)
    listing.add(name, member.size)


def _reason_against(entry: zipfile.ZipInfo) -> str | None:
    """Why a zip's member is left out."""
    if entry.flag_bits & _ENCRYPTED:
        return "it is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"its compression (method {entry.compress_type}) is not read; use deflate or none"
    if entry.compress_size > MAX_BYTES:
        return f"it takes more than {MAX_BYTES:,} bytes"
    return _reason_against_name(entry.filename)


def _reason_against_name(name: str) -> str | None:
    if name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._"):
        return "it holds what macOS knows of another file"
    return tars.reason_against(name)


def _zip_member(path: str, length: int, header: int, compressed: int, crc32: int, method: int) -> ZipMember:
    return ZipMember(path, header, compressed, length, crc32, method == zipfile.ZIP_DEFLATED)
