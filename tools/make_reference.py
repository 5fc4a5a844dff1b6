"""Save the statistics of a set of images once, as `reference=OUT` of many evaluations: see docs/evaluation.md."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.errors import DistDiffusionError
from dist_diffusion.evaluation import reference


def main() -> int:
    """Parse the command line, save the statistics, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", metavar="SHARDS", help="shard folder or its manifest.json, or an npz")
    parser.add_argument("out", metavar="OUT.npz")
    parser.add_argument("--num", type=int, help="images of SHARDS, from the first (default all)")
    parser.add_argument("--image-size", type=int, required=True, help="pixels of a side: that of the samples to come")
    parser.add_argument("--batch-size", type=int, default=64)
    arguments = parser.parse_args()
    try:
        reference.make(
            arguments.shards, arguments.out, arguments.num, arguments.image_size, arguments.batch_size, say=_say
        )
    except DistDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
