"""From a list of files to a source: what can be used, in an order of its own, with labels."""

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dist_diffusion.data.making import labels as labelling
from dist_diffusion.data.making.labels import Given, LabelMap, Labels, Prefix
from dist_diffusion.data.making.source import Original, Place, extension_of, why_not
from dist_diffusion.data.samples import EXTENSIONS
from dist_diffusion.errors import DataError

NO_LABEL_INSIDE = 'has no label: neither a number or name in KEY.cls nor "label" or "class" in KEY.json, nor --labels'


@dataclass
class Listing:
    """Files as a folder or archive holds them, in any order."""

    where: str
    """The folder or archive, for messages."""
    kind: str
    """Of source, in words."""
    place: Callable[[int], Place]
    """Of a file by its number."""
    names: list[str] = field(default_factory=list)
    sizes: array = field(default_factory=lambda: array("q"))
    unusable: list[Mapping[str, str]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    """Also those without files, as far as they are told."""

    def add(self, name: str, size: int) -> None:
        """One more file."""
        self.names.append(name)
        self.sizes.append(size)

    def leave_out(self, name: str, reason: str) -> None:
        """Name a file that is no original, and why."""
        self.unusable.append({"file": name, "reason": reason})


class ListedSource:
    """The files of a listing in the order `rows`, each with the label of its row."""

    def __init__(
        self,
        listing: Listing,
        rows: np.ndarray,
        labels: Labels,
        kind: str = "images",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(rows):
            raise nothing(listing)
        self.kind = kind
        self.classes = labels.classes
        self.unusable: Sequence[Mapping[str, str]] = listing.unusable
        self._listing = listing
        self._rows = rows
        self._labels = labels.values
        self.identity = {"kind": listing.kind, kind: len(rows), "sha256": self._sha256(), **(facts or {})}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Original:
        row = int(self._rows[position])
        name = self._listing.names[row]
        return Original(name, extension_of(name), int(self._labels[row]), self._listing.place(row))

    def _sha256(self) -> str:
        """Over names and sizes: telling one source from another must not take reading it."""
        state = hashlib.sha256()
        for row in self._rows.tolist():
            line = f"{self._listing.names[row]}\0{self._listing.sizes[row]}\n"
            state.update(line.encode(errors="surrogateescape"))
        return state.hexdigest()


def by_folders(listing: Listing, class_names: Sequence[str] | None) -> ListedSource:
    """The class is the folder that a file lies in. All class folders must lie side by side, with images or without;
    what is above them in an archive does not count.
    """
    rows = usable(listing)
    if not rows:
        raise nothing(listing)
    folders = [listing.names[row].rpartition("/")[0] for row in rows]
    roots = {folder.rpartition("/")[0]: row for folder, row in zip(folders, rows, strict=True)}
    if len(roots) > 1 or "" in folders:
        examples = " and ".join(listing.names[row] for row in list(roots.values())[:2])
        raise DataError(
            f"{listing.where}: the images do not lie in class folders side by side ({examples}): give one with a "
            f"folder a class, or labels with --labels"
        )
    root = "".join(f"{root}/" for root in roots if root)
    known = {*listing.folders, *(name.rpartition("/")[0] for name in listing.names)} - {""}
    groups = {folder.removeprefix(root) for folder in known if folder.rpartition("/")[0] == root.rstrip("/")}
    listing.names = [name.removeprefix(root) for name in listing.names]
    texts = [listing.names[row].partition("/")[0] for row in rows]
    labels = labelling.from_groups(texts, groups, class_names, listing.where)
    return ListedSource(listing, *_ordered(rows, labels, listing.names))


def by_names(listing: Listing, given: LabelMap | Prefix, class_names: Sequence[str] | None) -> ListedSource:
    """The class is what a map says of a file's name, or what the name begins with."""
    rows = usable(listing)
    keys = [listing.names[row] for row in rows]
    labels = labelling.of_names(keys, keys, given, class_names, listing.where)
    kept, labels = labelled(listing, rows, labels, keys, given)
    ordered, labels = _ordered(kept, labels, listing.names)
    return ListedSource(listing, ordered, labels, facts={"labels": labels_identity(labels, ordered)})


def labelled(
    listing: Listing, rows: Sequence[int], labels: Labels, keys: Sequence[str], given: Given
) -> tuple[list[int], Labels]:
    """The rows that have a label, and their labels; the others, and a map's other entries, are left out aloud."""
    if isinstance(given, LabelMap):
        listing.unusable.extend(given.unused(keys))
    reason = given.reason if isinstance(given, LabelMap) else NO_LABEL_INSIDE
    has_label = labels.values != labelling.NO_LABEL
    for row in np.array(rows)[~has_label].tolist():
        listing.leave_out(listing.names[row], reason)
    return np.array(rows)[has_label].tolist(), Labels(labels.values[has_label], labels.classes)


def nothing(listing: Listing) -> DataError:
    """The error for a source without one original."""
    example = "".join(f" ({entry['file']}: {entry['reason']})" for entry in listing.unusable[:1])
    return DataError(
        f"{listing.where} holds no images{example}: SOURCE is a folder whose sub-folders are the classes (as "
        f".../train), with {', '.join(EXTENSIONS)} files in them, or one of the others that docs/data.md lists"
    )


def labels_identity(labels: Labels, rows: np.ndarray) -> str:
    """What tells one labelling from another."""
    return hashlib.sha256(labels.values[rows].astype("<i4").tobytes()).hexdigest()


def usable(listing: Listing, extensions: Sequence[str] = EXTENSIONS) -> list[int]:
    """The numbers of the files that can be originals by name and size, the first of each name; the rest is left out."""
    rows, seen = [], set()
    for row, (name, size) in enumerate(zip(listing.names, listing.sizes, strict=True)):
        reason = "the name occurs twice" if name in seen else why_not(name, size, extensions)
        if reason:
            listing.leave_out(name, reason)
        else:
            rows.append(row)
            seen.add(name)
    return rows


def _ordered(rows: Sequence[int], labels: Labels, names: Sequence[str]) -> tuple[np.ndarray, Labels]:
    """Rows by name, folder by folder, so that a folder and any archive of it are one source; labels by row."""
    ordered = sorted(rows, key=lambda row: names[row].replace("/", "\0"))
    return np.array(ordered, dtype=np.int64), labels.spread(rows, len(names))
