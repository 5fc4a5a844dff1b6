"""Where shards are made from: folders, archives, an existing WebDataset, IDX files, arrays of latents."""

from collections.abc import Sequence

from dist_diffusion.data import manifest
from dist_diffusion.data.making import archives, folders, labels, listing
from dist_diffusion.data.making.arrays import LATENTS, Arrays
from dist_diffusion.data.making.idx import PREFIXES as IDX_PREFIXES
from dist_diffusion.data.making.idx import IdxFiles
from dist_diffusion.data.making.labels import Given
from dist_diffusion.data.making.source import Original, Source
from dist_diffusion.data.making.webdatasets import expanded, webdataset
from dist_diffusion.data.manifest import MANIFEST
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.storage import files

__all__ = ["IDX_PREFIXES", "Original", "Source", "open_source"]

_IDX_MARK = "-idx3-ubyte"


def open_source(
    path: str, split: str | None = None, class_names: Sequence[str] | None = None, labels_from: str | None = None
) -> Source:
    """The source that a path is: what each kind looks like is in docs/data.md.

    `labels_from` is the path of a map, or "prefix" for what file names begin with; by default the folders, or what a
    WebDataset says itself.
    """
    if files.is_remote(path):
        raise DataError(f"source {path} must lie on a local file system: copy it, or mount its bucket")
    names = files.list_names(path) if files.is_dir(path) else []
    if split is not None and not any(_IDX_MARK in name for name in names):
        raise ConfigError(f"--split chooses between IDX files, and {path} holds none: name the split's own folder")
    if any(_IDX_MARK in name for name in names) or LATENTS in names:
        if labels_from is not None:
            raise ConfigError(f"--labels={labels_from}, but {path} holds labels of its own: leave it out")
        return Arrays(path, class_names) if LATENTS in names else IdxFiles(path, split or "train", class_names)
    given = labels.parse(labels_from)
    if "{" in path and not files.exists(path):
        return webdataset(*expanded(path), given, class_names)
    tars = [name for name in names if name.endswith(".tar")]
    # Tars are left beside the folders that they unpacked to.
    if tars and not any(files.is_dir(files.join(path, name)) for name in names):
        return _webdataset(path, tars, given, class_names)
    if files.is_dir(path) and given is None:
        return folders.class_folders(path, class_names)
    found = _listing(path)
    if given is None:
        return listing.by_folders(found, class_names)
    return listing.by_names(found, given, class_names)


def _listing(path: str) -> listing.Listing:
    if files.is_dir(path):
        return folders.tree(path)
    if not files.exists(path):
        raise DataError(f"source folder {path} does not exist")
    if path.lower().endswith(".zip"):
        return archives.zipped(path)
    if path.lower().endswith(".tar"):
        return archives.tar(path)
    raise DataError(f"source {path} is neither a folder nor a .tar nor a .zip file; unpack it, or name its folder")


def _webdataset(folder: str, tars: Sequence[str], given: Given, class_names: Sequence[str] | None) -> Source:
    """Of a set of ours its manifest names the tars and the classes."""
    if files.exists(files.join(folder, MANIFEST)):
        found = manifest.load(folder)
        tars = [shard.name for shard in found.shards]
        class_names = found.classes if class_names is None and given is None else class_names
    return webdataset(folder, tars, given, class_names)
