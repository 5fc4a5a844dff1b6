"""index.npy and manifest.json for shards that others made, which stay as they are."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dist_diffusion.data.making import labels as labelling
from dist_diffusion.data.making import statistics
from dist_diffusion.data.making.assembly import UNFINISHED, write_index
from dist_diffusion.data.making.contents import Contents, Look
from dist_diffusion.data.making.labels import Given, LabelMap, Labels
from dist_diffusion.data.making.listing import NO_LABEL_INSIDE
from dist_diffusion.data.manifest import INDEX, MANIFEST, Manifest, Shard
from dist_diffusion.data.verify import examine_all
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files, publish


def make_manifest(
    folder: str,
    given: Given,
    class_names: Sequence[str] | None,
    decode: bool,
    workers: int,
    say: Callable[[str], None],
) -> tuple[Manifest | None, list[str]]:
    """Describe a folder's .tar files, in place: the manifest, or None and what is wrong with the tars.

    Samples without a label, images that cannot be decoded, and members that belong to no sample stay in the tars, but
    are not in the index; the manifest lists them as skipped.
    """
    if files.exists(files.join(folder, MANIFEST)):
        raise DataError(f"{folder} holds a {MANIFEST} already: verify it without --make-manifest, or remove that file")
    there = files.list_names(folder)
    if UNFINISHED in there:
        raise DataError(
            f"{folder} holds an unfinished set ({UNFINISHED} says which): run tools/make_shards.py again to finish "
            f"it, or remove that file to describe the shards that are there"
        )
    names = [name for name in there if name.endswith(".tar")]
    if not names:
        raise DataError(f"{folder} holds no .tar files: name the folder in which the shards lie")
    found = sorted(
        examine_all([Look(folder, name, decode) for name in names], workers, say), key=lambda shard: shard.name
    )
    problems = _problems(found)
    if problems:
        return None, problems
    return _Adoption(folder, found, given, class_names).publish(say), []


def _problems(found: Sequence[Contents]) -> list[str]:
    problems = [contents.damage for contents in found if contents.damage]
    names: dict[str, str] = {}
    for contents in found:
        if contents.sha256 in names:
            problems.append(f"shards {names[contents.sha256]} and {contents.name} are the same: remove one of them")
        names[contents.sha256] = contents.name
    kinds = {contents.kind: contents.name for contents in found if contents.kind}
    if len(kinds) > 1:
        problems.append(f"shards of images and of latents: {', '.join(sorted(kinds.values()))}; a set is of one kind")
    return problems


class _Adoption:
    """Sound shards on their way to a manifest."""

    def __init__(self, folder: str, found: Sequence[Contents], given: Given, class_names: Sequence[str] | None) -> None:
        self._folder = folder
        self._found = found
        self._given = given
        self._skipped: list[Mapping[str, str]] = []
        labels = self._labels(class_names)
        self._classes = labels.classes
        sizes = [len(contents.images) for contents in found]
        self._labels_by_shard = np.split(labels.values, np.cumsum(sizes)[:-1])

    def publish(self, say: Callable[[str], None]) -> Manifest:
        """Write index.npy, then manifest.json."""
        parts = [
            self._rows(contents, labels) for contents, labels in zip(self._found, self._labels_by_shard, strict=True)
        ]
        used = [(contents, rows) for contents, rows in zip(self._found, parts, strict=True) if len(rows)]
        if not used:
            example = "".join(f", such as {entry['file']}: {entry['reason']}" for entry in self._skipped[:1])
            raise DataError(f"{self._folder} has no samples that can be used{example}")
        if isinstance(self._given, LabelMap):
            names = {name for contents in self._found for name in contents.images}
            self._skipped += self._given.unused(names)
        for entry in self._skipped[:100]:
            say(f"left out {entry['file']}: {entry['reason']}")
        index, checksum = write_index(self._folder, [rows for _, rows in used])
        kind = used[0][0].kind or "images"
        made = Manifest(
            folder=self._folder,
            shards=tuple(Shard(shard.name, len(rows), shard.bytes, shard.sha256) for shard, rows in used),
            classes=self._classes,
            class_counts=tuple(np.bincount(index["label"], minlength=len(self._classes)).tolist()),
            source={"kind": "shards made by others", "labels_from": self._labels_from()},
            index_file=INDEX,
            index_sha256=checksum,
            skipped=tuple(self._skipped),
            kind=kind,
            statistics=statistics.summary(kind, [contents.tally for contents, _ in used]),
        )
        publish.write_json(files.join(self._folder, MANIFEST), made.to_json())
        return made

    def _labels(self, class_names: Sequence[str] | None) -> Labels:
        images = [f"{contents.name}/{name}" for contents in self._found for name in contents.images]
        if self._given is None:
            texts = [text for contents in self._found for text in contents.texts]
            return labelling.from_texts(texts, images.__getitem__, class_names)
        keys = [name.partition("/")[2] for name in images]
        return labelling.of_names(keys, images, self._given, class_names, self._folder)

    def _rows(self, contents: Contents, labels: np.ndarray) -> np.ndarray:
        """The rows of what can be used of a shard; the rest is left out."""
        no_label = self._given.reason if isinstance(self._given, LabelMap) else NO_LABEL_INSIDE
        reasons = {i: no_label for i in np.flatnonzero(labels == labelling.NO_LABEL).tolist()} | contents.undecodable
        left_out = [(contents.images[i], reason) for i, reason in sorted(reasons.items())]
        left_out += [(entry.name, entry.reason) for entry in contents.left_out]
        self._skipped += [{"file": f"{contents.name}/{name}", "reason": reason} for name, reason in left_out]
        rows = contents.rows.copy()
        rows["label"] = labels
        return rows[[i for i in range(len(rows)) if i not in reasons]]

    def _labels_from(self) -> str:
        if isinstance(self._given, LabelMap):
            return "a map"
        return "file name prefixes" if self._given else "samples"
