"""Checkpoints of guided-diffusion in and out: see docs/released.md.

FILE.pt --preset NAME OUT.safetensors makes an export of a released state_dict, of torch.save or safetensors.
RUN OUT.pt (or RUN@STEP OUT.pt, or an export in its place) is the way back.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.errors import ConfigError, DistDiffusionError
from dist_diffusion.weights import released

PRESETS = Path(__file__).resolve().parents[1] / "configs" / "adm"


def main() -> int:
    """Parse the command line, convert in the direction that OUT says, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", metavar="FILE", help="a state_dict, or for the way back a run or an export")
    parser.add_argument("out", metavar="OUT", help="OUT.safetensors, or for the way back OUT.pt")
    names = ", ".join(released.preset_names(str(PRESETS)))
    parser.add_argument("--preset", metavar="NAME", help=f"the path of a recipe (.yaml), or one of {names}")
    parser.add_argument("--ema", metavar="NAME", help="for the way back: which export of a run (default the first)")
    arguments = parser.parse_args()
    try:
        convert(arguments)
    except DistDiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def convert(arguments: argparse.Namespace) -> None:
    """ConfigError where OUT and the options do not say one direction."""
    out = arguments.out
    if out.endswith(".pt"):
        if arguments.preset is not None:
            raise ConfigError(f"--preset is for the way in; {out} is the way back, and FILE knows its own recipe")
        released.export_checkpoint(arguments.file, arguments.ema, out, _say)
    elif not out.endswith(".safetensors"):
        raise ConfigError(f"{out}: OUT ends in .safetensors, or in .pt for the way back")
    elif arguments.preset is None:
        presets = ", ".join(released.preset_names(str(PRESETS)))
        raise ConfigError(
            f"--preset is missing: which model {arguments.file} is of, one of {presets}, or a recipe's path (.yaml)"
        )
    elif arguments.ema is not None:
        raise ConfigError(f"--ema={arguments.ema} chooses among a run's exports on the way back to .pt: leave it out")
    else:
        released.import_checkpoint(arguments.file, arguments.preset, str(PRESETS), out, _say)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
