"""An existing WebDataset: tar files of KEY.EXTENSION members, ours or others'."""

import json
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from dist_diffusion.data import tars
from dist_diffusion.data.making import labels as labelling
from dist_diffusion.data.making import listing as listings
from dist_diffusion.data.making.archives import reading
from dist_diffusion.data.making.folders import THREADS
from dist_diffusion.data.making.labels import Given
from dist_diffusion.data.making.listing import ListedSource, Listing
from dist_diffusion.data.making.source import MAX_BYTES, Part
from dist_diffusion.data.samples import EXTENSIONS, LATENT, LeftOut, Sample, samples
from dist_diffusion.data.tars import Read
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

LABEL_KEYS = ("label", "class")


@dataclass
class _Found:
    """What one tar holds: its samples' images (name, offset, size, label) and what belongs to none."""

    images: list[tuple[str, int, int, str | None]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def webdataset(folder: str, names: Sequence[str], given: Given, class_names: Sequence[str] | None) -> ListedSource:
    """The samples of the tars `names` of a folder, in their order, with a label each from .cls, .json or elsewhere.

    A map's names are the images' own in their tars, KEY.EXTENSION.
    """
    listing, texts = _list(folder, names)
    kind = "latents" if any(name.endswith(f".{LATENT}") for name in listing.names[:1]) else "images"
    rows = listings.usable(listing, (LATENT,) if kind == "latents" else EXTENSIONS)
    images = [listing.names[row] for row in rows]
    keys = [name.partition("/")[2] for name in images]
    if given is None:
        labels = labelling.from_texts([texts[row] for row in rows], images.__getitem__, class_names)
    else:
        labels = labelling.of_names(keys, images, given, class_names, folder)
    rows, labels = listings.labelled(listing, rows, labels, keys, given)
    labels = labels.spread(rows, len(listing.names))
    ordered = np.array(rows, dtype=np.int64)
    return ListedSource(listing, ordered, labels, kind, {"labels": listings.labels_identity(labels, ordered)})


def expanded(pattern: str) -> tuple[str, list[str]]:
    """Folder and names of tars in WebDataset's brace notation, "FOLDER/x-{000..099}.tar". DataError names what is not
    there.
    """
    # Not at the top of the file: it imports torch.
    from webdataset.shardlists import expand_urls

    paths = expand_urls(pattern)
    missing = [path for path in paths if not files.exists(path)]
    if missing:
        raise DataError(f"source {pattern}: {len(missing)} of {len(paths)} tars do not exist, such as {missing[0]}")
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder, [os.path.relpath(path, folder or ".") for path in paths]


def _list(folder: str, names: Sequence[str]) -> tuple[Listing, list[str | None]]:
    """The images of all tars, and what their samples say of their labels."""
    numbers, offsets = array("l"), array("q")
    paths = [files.join(folder, name) for name in names]
    listing = Listing(folder, "webdataset", lambda row: Part(paths[numbers[row]], offsets[row], listing.sizes[row]))
    texts: list[str | None] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for number, found in enumerate(pool.map(_scan, paths)):
            for entry in found.left_out:
                listing.leave_out(f"{names[number]}/{entry.name}", entry.reason)
            for name, offset, size, text in found.images:
                listing.add(f"{names[number]}/{name}", size)
                numbers.append(number)
                offsets.append(offset)
                texts.append(text)
    return listing, texts


def label_text(sample: Sample, read: Read) -> str | None:
    """What a sample says of its label, digits or a name; None where it says nothing that can be understood."""
    if "cls" in sample.members:
        return _content(sample, "cls", read).decode("utf-8", "replace").strip() or None
    if "json" not in sample.members:
        return None
    try:
        content = json.loads(_content(sample, "json", read))
    except (ValueError, RecursionError):
        return None
    found = [content[key] for key in LABEL_KEYS if isinstance(content, dict) and key in content]
    known = found and isinstance(found[0], int | str) and not isinstance(found[0], bool)
    return str(found[0]) if known else None


def _content(sample: Sample, extension: str, read: Read) -> bytes:
    member = sample.members[extension]
    return read(member.offset, min(member.size, MAX_BYTES))


def _scan(path: str) -> _Found:
    result = _Found()
    what = f"archive {path}"
    with reading(path) as (read, size):
        for found in samples(what, tars.walk(what, read, 0, size)):
            if isinstance(found, LeftOut):
                result.left_out.append(found)
            elif found.image is None:
                result.left_out.append(LeftOut(found.key, f"it has {found.reason}"))
            else:
                member = found.image
                result.images.append((member.name, member.offset, member.size, label_text(found, read)))
    return result
