"""Make a shard folder: tar files, then index.npy, then manifest.json. One source, one set of bytes.

Shard s holds what can be used of positions s n ... (s+1) n - 1 of the shuffled source, so that shards are independent:
processes, ranks and array tasks make them without a word to each other, and a finished one is never made again. Its
record lies beside it; whoever finds all records puts the set together. Two who do so at once write the same bytes.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dist_diffusion.data import manifest
from dist_diffusion.data.making import processes, records
from dist_diffusion.data.making.assembly import UNFINISHED, assemble, tidy
from dist_diffusion.data.making.meter import Meter
from dist_diffusion.data.making.share import WHOLE, Share
from dist_diffusion.data.making.source import Source
from dist_diffusion.data.making.treatment import AS_IS, Treatment
from dist_diffusion.data.making.writing import Job, Outcome, make_shard
from dist_diffusion.data.manifest import MANIFEST, Manifest
from dist_diffusion.draws import permutation
from dist_diffusion.errors import ConfigError, DataError, StorageError
from dist_diffusion.storage import files, publish

MAX_SAID = 100
"""Files left out that are said; all are in the manifest."""


def make(
    source: Source,
    out: str,
    samples_per_shard: int,
    seed: int,
    say: Callable[[str], None],
    treatment: Treatment = AS_IS,
    workers: int = 1,
    share: Share = WHOLE,
    say_progress: Callable[[str], None] | None = None,
) -> Manifest | None:
    """Write this share of the source's samples, shuffled by `seed`, as shards into the folder `out`.

    Returns the set's manifest, or None while shards of other shares are missing. Where `out` holds that very set,
    nothing is written; where it holds a part of it, what is missing is made; anything else is refused (DataError).
    Images that cannot be used are left out, said, and listed in the manifest. `say_progress` is for how far it is, and
    by default `say`.
    """
    if samples_per_shard < 1:
        raise ConfigError(f"--samples-per-shard={samples_per_shard} must be at least 1")
    if source.kind == "latents" and treatment != AS_IS:
        raise ConfigError("latents are kept as they are: leave out --decode and --resize")
    making = _Making(source, out, samples_per_shard, seed, say, treatment)
    if files.exists(files.join(out, MANIFEST)):
        return making.existing()
    try:
        making.claim()
        making.make_shards(workers, share, say_progress or say)
        return making.finish(share)
    except (DataError, StorageError):
        # Another process finished the set, and tidied up, in between.
        if files.exists(files.join(out, MANIFEST)):
            return making.existing()
        raise


class _Making:
    """One set while it is made."""

    def __init__(
        self, source: Source, out: str, samples_per_shard: int, seed: int, say: Callable[[str], None], treat: Treatment
    ) -> None:
        self._source = source
        self._out = out
        self._samples_per_shard = samples_per_shard
        self._num_shards = -(-len(source) // samples_per_shard)
        self._say = say
        self._treatment = treat
        self._seed = seed
        self._num_said = 0
        self._identity = {
            **source.identity,
            **treat.identity(),
            "samples_per_shard": samples_per_shard,
            "seed": seed,
        }

    def claim(self) -> None:
        """Mark a new or empty folder, or find this set's own mark there."""
        path = files.join(self._out, UNFINISHED)
        with files.failures("prepare", self._out):
            if not files.is_remote(self._out):
                os.makedirs(self._out, exist_ok=True)
        names = files.list_names(self._out)
        # Looked up after the listing: another share may have begun in between.
        if not files.exists(path):
            if names:
                raise DataError(f"{self._out} is not empty and holds no {MANIFEST}: choose another folder")
            self._write_mark(path)
        found = _parsed(files.read_bytes(path))
        if found != self._mark():
            raise DataError(
                f"{self._out} holds an unfinished set of another source or other settings: begun from "
                f"{found.get('source') if isinstance(found, dict) else 'an earlier version'}, not from "
                f"{self._identity}, or with other --classes. Run that command, or choose another folder or remove this"
            )

    def _write_mark(self, path: str) -> None:
        content = json.dumps(self._mark(), indent=2).encode()
        if files.is_remote(path):
            publish.write_bytes(path, content)
        else:
            # Of two that begin at once one is first, and the other finds its mark.
            try:
                publish.create_exclusive(path, content)
            except StorageError:
                # A bucket that is mounted as a folder has no hard links.
                publish.write_bytes(path, content)

    def make_shards(self, workers: int, share: Share, say_progress: Callable[[str], None]) -> None:
        """Those of the share that are not there yet."""
        numbers = range(share.index, self._num_shards, share.count)
        total = sum(len(self._positions(number)) for number in numbers)
        meter = Meter(say_progress, total, self._source.kind, share.index)
        if share.index == 0:
            self._tell_left_out(self._source.unusable)
        try:
            for outcome in processes.each(make_shard, self._jobs(numbers), min(workers, len(numbers)) or 1):
                self._tell(outcome)
                meter.advance(outcome.originals, outcome.kept)
        finally:
            meter.close()

    def finish(self, share: Share) -> Manifest | None:
        """Put the set together if all its shards are there; else say what is missing."""
        missing = self._num_shards - len(records.numbers(files.list_names(self._out)))
        if missing and files.exists(files.join(self._out, MANIFEST)):
            return self.existing()
        if missing:
            self._say(
                f"share {share.index + 1} of {share.count} is done; {missing} of {self._num_shards} shards are not "
                f"finished yet: who finishes the last one completes {self._out}. Should nobody, run the command again"
            )
            return None
        found = [records.load(self._out, number) for number in range(self._num_shards)]
        made = assemble(self._source, self._identity, self._out, found)
        tidy(self._out)
        for name, count in zip(made.classes, made.class_counts, strict=True):
            if not count:
                self._say(f"class {name} has no images")
        self._say(f"{_held(made)}, {len(made.skipped)} files left out: {self._out}")
        return made

    def existing(self) -> Manifest:
        """The manifest that is there, if it is this set's."""
        found = manifest.load(self._out)
        manifest.index(found)
        if _parsed(json.dumps(found.source)) != self._identity or found.classes != self._source.classes:
            raise DataError(
                f"{self._out} holds another set: made from {dict(found.source)}, classes {_listed(found.classes)}, and "
                f"not from {self._identity}, classes {_listed(self._source.classes)}. Choose another folder or remove "
                f"that one"
            )
        tidy(self._out)
        self._say(f"{self._out} already holds this set: {_held(found)}")
        return found

    def _jobs(self, numbers: Sequence[int]) -> Iterator[Job]:
        order = permutation(self._seed, "make_shards", 0, len(self._source))
        done = records.numbers(files.list_names(self._out))
        key_digits = len(str(len(self._source) - 1))
        for number in numbers:
            positions = self._positions(number)
            originals = tuple(self._source[row] for row in order[positions.start : positions.stop].tolist())
            yield Job(
                self._out,
                number,
                self._source.kind,
                self._treatment,
                positions.start,
                key_digits,
                originals,
                number in done,
            )

    def _positions(self, number: int) -> range:
        begin = number * self._samples_per_shard
        return range(begin, min(begin + self._samples_per_shard, len(self._source)))

    def _tell(self, outcome: Outcome) -> None:
        if outcome.remade:
            self._say(f"{records.shard_name(outcome.number)} was not what its record says: made again")
        self._tell_left_out(outcome.skipped)

    def _tell_left_out(self, entries: Sequence[Any]) -> None:
        for entry in entries:
            if self._num_said == MAX_SAID:
                self._say(f"more than {MAX_SAID} files are left out: {MANIFEST} will list all")
            if self._num_said < MAX_SAID:
                self._say(f"left out {entry['file']}: {entry['reason']}")
            self._num_said += 1

    def _mark(self) -> dict[str, Any]:
        return {
            "unfinished": "tools/make_shards.py is at work here, or was stopped",
            "source": self._identity,
            "classes": list(self._source.classes),
        }


def _parsed(content: str | bytes) -> Any:
    """As JSON, None where it is none: an earlier version's mark."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def _held(made: Manifest) -> str:
    return f"{made.num_samples:,} {made.kind} in {len(made.shards)} shards"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
