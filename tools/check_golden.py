"""Compare this package with the numbers of openai/guided-diffusion in a folder of golden values.

Prints a row a case: its largest error, what is allowed, and whether it is within. The exit code is 0 if all are, 1 if
one is not or something in the folder was not run, 2 if there is no such folder. See docs/mathematics.md.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from golden_checks import cases
from golden_checks.folder import Folder
from golden_checks.report import HEADER

from dist_diffusion.errors import DistDiffusionError


def main() -> int:
    """Parse the command line, run the cases, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder of golden values")
    try:
        folder = Folder(parser.parse_args().folder)
    except DistDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(HEADER)
    verdicts = []
    for row in cases.run(folder):
        print(row, flush=True)
        verdicts.append(row.verdict)
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("pass", "FAIL", "not run")))
    return 0 if set(verdicts) == {"pass"} else 1


if __name__ == "__main__":
    sys.exit(main())
