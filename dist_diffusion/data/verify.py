"""Whether a shard folder is what its manifest says: every byte of it is read."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dist_diffusion.data import manifest as manifests
from dist_diffusion.data.making import labels, processes, statistics
from dist_diffusion.data.making.contents import Contents, Look, examine
from dist_diffusion.data.making.meter import Meter
from dist_diffusion.data.manifest import INDEX, MANIFEST, Manifest, Shard
from dist_diffusion.errors import DataError
from dist_diffusion.storage import files

MAX_TOLD = 10
"""Differences from the index that are told of one shard; samples that cannot be decoded are told one and all."""


def verify(path: str, decode: bool, workers: int, say: Callable[[str], None]) -> tuple[Manifest, list[str]]:
    """The manifest of a shard folder, and all that is wrong with the set: messages that name shard and sample.

    DataError where there is no manifest, or none that can be read.
    """
    manifest = manifests.read(path)
    there = files.sizes(manifest.folder, [shard.name for shard in manifest.shards])
    problems = _table_problems(manifest)
    rows = _index(manifest, problems)
    tallies: dict[str, Mapping[str, Any]] = {}
    by_shard: dict[str, list[str]] = {}
    numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
    looks = [Look(manifest.folder, name, decode) for name in numbers if name in there]
    for contents in examine_all(looks, workers, say):
        number = numbers[contents.name]
        comparison = _Comparison(manifest, manifest.shards[number], contents)
        by_shard[contents.name] = comparison.problems(None if rows is None else rows[number])
        tallies[contents.name] = contents.tally
    for shard in manifest.shards:
        missing = manifests.size_problem(manifest, shard, None) if shard.name not in there else None
        problems += [missing] if missing else by_shard[shard.name]
    if not problems and manifest.statistics:
        problems += _statistics_problems(manifest, [tallies[shard.name] for shard in manifest.shards])
    return manifest, problems


def examine_all(looks: Sequence[Look], workers: int, say: Callable[[str], None]) -> Iterator[Contents]:
    """The contents of all shards, in the order in which they are ready, with a progress bar."""
    meter = Meter(say, len(looks), "shards")
    try:
        for contents in processes.each(examine, looks, min(workers, len(looks)) or 1):
            meter.advance(1)
            yield contents
    finally:
        meter.close()


def _table_problems(manifest: Manifest) -> list[str]:
    """What the manifest itself gives away."""
    problems = []
    names: dict[str, str] = {}
    for shard in manifest.shards:
        if shard.sha256 in names:
            problems.append(f"shards {names[shard.sha256]} and {shard.name} are the same: all their samples are double")
        names[shard.sha256] = shard.name
    return problems


def _index(manifest: Manifest, problems: list[str]) -> list[np.ndarray] | None:
    """The index's rows of each shard; what is wrong with it is added to the problems."""
    try:
        index = manifests.index(manifest)
    except DataError as error:
        problems.append(str(error))
        return None
    counts = np.bincount(index["label"], minlength=len(manifest.classes)).tolist()
    if counts != list(manifest.class_counts):
        problems.append(f"{MANIFEST}: class_counts are {list(manifest.class_counts)}, but the index's labels {counts}")
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    parts = np.split(index, ends[:-1])
    wrong = [shard.name for i, shard in enumerate(manifest.shards) if (parts[i]["shard"] != i).any()]
    if wrong:
        problems.append(f"{INDEX}: rows of {', '.join(wrong)} name another shard")
    return parts


def _statistics_problems(manifest: Manifest, tallies: Sequence[Mapping[str, Any]]) -> list[str]:
    computed = statistics.summary(manifest.kind, tallies)
    told = dict(manifest.statistics)
    return (
        []
        if _alike(computed, told)
        else [f"{MANIFEST}: the statistics are {told}, but those of the samples {computed}"]
    )


def _alike(a: Any, b: Any) -> bool:
    """Equal but for a float's last digits, which are the processor's."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6)
    return bool(a == b)


class _Comparison:
    """A shard with what the manifest and the index say of it."""

    def __init__(self, manifest: Manifest, shard: Shard, contents: Contents) -> None:
        self._manifest = manifest
        self._shard = shard
        self._contents = contents
        self._what = f"shard {files.join(manifest.folder, shard.name)}"
        self._skipped = {entry["file"] for entry in manifest.skipped}
        self._checks_labels = manifest.source.get("labels_from", "samples") == "samples"

    def problems(self, rows: np.ndarray | None) -> list[str]:
        """All that is wrong; `rows` are the index's."""
        contents = self._contents
        size = manifests.size_problem(self._manifest, self._shard, contents.bytes)
        if contents.damage:
            told = f" ({contents.bytes} bytes; {MANIFEST} says {self._shard.bytes})" if size else ""
            return [contents.damage + told]
        found = [size] if size else []
        if not size and contents.sha256 != self._shard.sha256:
            found.append(f"{self._what} is not the file that {MANIFEST} describes (its sha256 differs): restore it")
        found += [
            f"{self._what}: member {entry.name}: {entry.reason}"
            for entry in contents.left_out
            if not self._is_skipped(entry.name)
        ]
        differences = [] if rows is None else list(self._differences(rows))
        found += differences[:MAX_TOLD]
        if len(differences) > MAX_TOLD:
            found.append(f"{self._what}: {len(differences) - MAX_TOLD} more differences from {INDEX}")
        return found + [
            f"{self._what}: sample {contents.images[i]} cannot be decoded: {reason}"
            for i, reason in contents.undecodable.items()
            if not self._is_skipped(contents.images[i])
        ]

    def _differences(self, rows: np.ndarray) -> Iterator[str]:
        """Between the index and the tar, sample by sample."""
        contents = self._contents
        numbers = {offset: number for number, offset in enumerate(rows["offset"].tolist())}
        for i, (_, offset, length, _, crc32) in enumerate(contents.rows.tolist()):
            sample = f"{self._what}: sample {contents.images[i]} (byte {offset})"
            number = numbers.pop(offset, None)
            if number is None:
                if not self._is_skipped(contents.images[i]):
                    yield f"{sample} is not in {INDEX}"
            elif (length, crc32) != (rows["length"][number], rows["crc32"][number]):
                yield f"{sample} is not what {INDEX} describes (its length or crc32 differs): it was changed"
            elif self._checks_labels and not self._is_label(contents.texts[i], int(rows["label"][number])):
                yield f"{sample} says that its label is {contents.texts[i]}, {INDEX} {rows['label'][number]}"
        for offset in numbers:
            yield f"{self._what}: {INDEX} has a sample at byte {offset}, where the tar has none"

    def _is_label(self, text: str | None, label: int) -> bool:
        return text is not None and (text == self._manifest.classes[label] or labels.integer(text) == label)

    def _is_skipped(self, member: str) -> bool:
        return f"{self._shard.name}/{member}" in self._skipped
