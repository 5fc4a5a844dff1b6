"""Check every byte of a shard folder, or describe shards that others made: see docs/data.md."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.data import adopt, verify
from dist_diffusion.data.making import labels
from dist_diffusion.data.manifest import Manifest
from dist_diffusion.distributed.environment import resolve, share_of_cores
from dist_diffusion.errors import ConfigError, DataError, DistDiffusionError, StoppedError
from dist_diffusion.observe.console import Console


def main() -> int:
    """Parse the command line, check, return the exit code."""
    arguments = _parser().parse_args()
    try:
        manifest, problems = _check(arguments)
        for problem in problems:
            print(f"problem: {problem}", file=sys.stderr)
        if manifest is None or problems:
            raise DataError(f"{arguments.shards}: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    except KeyboardInterrupt:
        return _failed(StoppedError("interrupted: run the same command again"))
    except DistDiffusionError as error:
        return _failed(error)
    held = f"{manifest.num_samples:,} {manifest.kind} in {len(manifest.shards)} shards, {len(manifest.classes)} classes"
    how = "decoded" if arguments.decode else "read"
    print(f"{arguments.shards} is sound: {held}, all {how}; {len(manifest.skipped)} files were left out of it")
    return 0


def _check(arguments: argparse.Namespace) -> tuple[Manifest | None, list[str]]:
    workers = share_of_cores(resolve(os.environ)) if arguments.workers is None else arguments.workers
    say = Console(None, rank=0).say
    if workers < 1:
        raise ConfigError(f"--workers={workers} must be at least 1")
    if not arguments.make_manifest:
        if arguments.classes is not None or arguments.labels is not None:
            raise ConfigError("--classes and --labels are for --make-manifest: give that too")
        return verify.verify(arguments.shards, arguments.decode, workers, say)
    names = None if arguments.classes is None else labels.read_class_names(arguments.classes)
    given = labels.parse(arguments.labels)
    return adopt.make_manifest(arguments.shards, given, names, arguments.decode, workers, say)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", metavar="SHARDS", help="a shard folder, of any kind of path, or its manifest.json")
    parser.add_argument(
        "--decode", action="store_true", help="decode every image; by default its header and end are read"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the cores of this process)")
    parser.add_argument(
        "--make-manifest", action="store_true", help="write index.npy and manifest.json for the folder's .tar files"
    )
    parser.add_argument("--classes", metavar="FILE", help="the classes' names in order of the labels, one a line")
    parser.add_argument(
        "--labels",
        metavar="FILE|prefix",
        help="JSON or CSV of image names and labels; or prefix: what names have before their first underscore",
    )
    return parser


def _failed(error: DistDiffusionError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
