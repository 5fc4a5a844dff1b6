"""Make WebDataset shards, with manifest.json and index.npy, from class folders or IDX files: see docs/data.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.data import shards, sources
from dist_diffusion.errors import ConfigError, DistDiffusionError


def main() -> int:
    """Parse the command line, make the shards, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="folder whose sub-folders are the classes, or of IDX files")
    parser.add_argument("out", metavar="OUT", help="folder to make: new, empty, or left unfinished")
    parser.add_argument("--samples-per-shard", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling (default 0)")
    parser.add_argument("--split", choices=sorted(sources.IDX_PREFIXES), help="of IDX files (default train)")
    parser.add_argument("--classes", metavar="FILE", help="the classes' names in order of the labels, one a line")
    arguments = parser.parse_args()
    try:
        names = None if arguments.classes is None else _lines(arguments.classes)
        source = sources.open_source(arguments.source, arguments.split, names)
        shards.make(source, arguments.out, arguments.samples_per_shard, arguments.seed, say=_say)
    except DistDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --classes {path}: {error}") from error


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
