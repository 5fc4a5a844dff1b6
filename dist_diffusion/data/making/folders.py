"""Image files in folders: of classes, or of any shape where the labels come from elsewhere."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from dist_diffusion.data.making import listing as listings
from dist_diffusion.data.making.listing import ListedSource, Listing
from dist_diffusion.data.making.source import WholeFile
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

# A network file system answers slowly, but many at once.
THREADS = 16


@dataclass
class _Found:
    """One folder's entries, by path below the top; files with their sizes."""

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def class_folders(folder: str, class_names: Sequence[str] | None) -> ListedSource:
    """A folder whose sub-folders are the classes, in sorted order, and hold image files, kept byte for byte."""
    top = _scan(folder, "")
    listing = _listing(folder, "class folders")
    for name in [*(name for name, _ in top.files), *top.others]:
        listing.leave_out(name, "not in a class folder")
    for found in _scan_all(folder, sorted(top.folders)):
        if found.folders:
            name, _, inner = found.folders[0].partition("/")
            raise DataError(
                f"class folder {files.join(folder, name)} holds a folder ({inner}): SOURCE is the folder whose "
                f"sub-folders are the classes (as .../train); labels of deeper trees come from --labels"
            )
        _add(listing, found)
    listing.folders = top.folders
    return listings.by_folders(listing, class_names)


def tree(folder: str) -> Listing:
    """All files below a folder, at any depth."""
    listing = _listing(folder, "files")
    level = [""]
    while level:
        deeper: list[str] = []
        for found in _scan_all(folder, level):
            _add(listing, found)
            deeper += found.folders
        level = sorted(deeper)
    return listing


def _listing(folder: str, kind: str) -> Listing:
    listing = Listing(folder, kind, lambda row: WholeFile(files.join(folder, listing.names[row])))
    return listing


def _add(listing: Listing, found: _Found) -> None:
    for name, size in found.files:
        listing.add(name, size)
    for name in found.others:
        listing.leave_out(name, "it is no file, or a link to nothing")


def _scan_all(top: str, folders: Sequence[str]) -> list[_Found]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda folder: _scan(top, folder), folders))


def _scan(top: str, folder: str) -> _Found:
    """The entries of one folder below the top, sorted."""
    result = _Found()
    path = files.join(top, folder) if folder else top
    with files.failures("list", path), os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                result.folders.append(name)
            elif entry.is_file():
                result.files.append((name, entry.stat().st_size))
            else:
                result.others.append(name)
    return result
