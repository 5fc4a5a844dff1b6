"""Make WebDataset shards, with manifest.json and index.npy, from images or latents: see docs/data.md.

Parallel over --workers, and with the same command under mpirun or in a SLURM array over nodes. Started again, it goes
on where it was.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from dist_diffusion.data import shards, sources
from dist_diffusion.data.making import treatment
from dist_diffusion.data.making.labels import read_class_names
from dist_diffusion.data.making.share import share_of
from dist_diffusion.data.making.treatment import Resize, Treatment
from dist_diffusion.distributed.environment import Topology, check_ranks_used, resolve, share_of_cores
from dist_diffusion.errors import ConfigError, DistDiffusionError, StoppedError
from dist_diffusion.observe.console import Console


def main() -> int:
    """Parse the command line, make this process's share of the shards, return the exit code."""
    arguments = _parser().parse_args()
    where = ""
    try:
        topology = resolve(os.environ)
        check_ranks_used(topology, os.environ)
        where = f" (rank {topology.rank})" if topology.world_size > 1 else ""
        _make(arguments, topology)
    except KeyboardInterrupt:
        return _failed(StoppedError("interrupted: run the same command again to go on"), where)
    except DistDiffusionError as error:
        return _failed(error, where)
    return 0


def _make(arguments: argparse.Namespace, topology: Topology) -> None:
    names = None if arguments.classes is None else read_class_names(arguments.classes)
    made_into = _treatment(arguments)
    workers = share_of_cores(topology) if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigError(f"--workers={workers} must be at least 1")
    _check_out(arguments.source, arguments.out)
    source = sources.open_source(arguments.source, arguments.split, names, arguments.labels)
    share = share_of(topology, os.environ)
    console, who = Console(None, rank=0), f"rank {topology.rank}: " if topology.world_size > 1 else ""
    shards.make(
        source,
        arguments.out,
        arguments.samples_per_shard,
        arguments.seed,
        lambda text: console.say(f"{who}{text}"),
        made_into,
        workers,
        share,
        Console(None, topology.rank).say,
    )


def _check_out(source: str, out: str) -> None:
    """ConfigError where the shards would become a part of what they are made from."""
    if "://" not in out and Path(os.path.realpath(source)) in Path(os.path.realpath(out), "shard").parents:
        raise ConfigError(f"OUT={out} lies inside SOURCE={source}: choose a folder beside it")


def _treatment(arguments: argparse.Namespace) -> Treatment:
    if arguments.resize is None:
        if arguments.mode is not None or arguments.jpeg_quality is not None:
            raise ConfigError("--mode and --jpeg-quality say how images are resized: give --resize N too")
        return Treatment(arguments.decode)
    return Treatment(arguments.decode, Resize(arguments.resize, arguments.mode or "box", arguments.jpeg_quality))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder whose sub-folders are the classes; such a folder as .tar or .zip; ImageNet's tar of tars; folder "
        "of a WebDataset's .tar files, of IDX files, or of latents.npy and labels.npy",
    )
    parser.add_argument(
        "out", metavar="OUT", help="folder to make, of any kind of path: new, empty, or left unfinished"
    )
    parser.add_argument("--samples-per-shard", type=int, default=4096, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling (default 0)")
    parser.add_argument("--split", choices=sorted(sources.IDX_PREFIXES), help="of IDX files (default train)")
    parser.add_argument("--classes", metavar="FILE", help="the classes' names in order of the labels, one a line")
    parser.add_argument(
        "--labels",
        metavar="FILE|prefix",
        help="JSON or CSV of file names and labels; or prefix: what file names have before their first underscore",
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image; by default its header and end are read"
    )
    parser.add_argument(
        "--resize", type=int, metavar="N", help="to N x N pixels; by default bytes are kept as they are"
    )
    parser.add_argument(
        "--mode",
        choices=treatment.MODES,
        help="of --resize: box halves by box filter, then scales bicubically, as ADM (default); bicubic scales the "
        "centre square at once; crop cuts the centre out",
    )
    parser.add_argument("--jpeg-quality", type=int, metavar="Q", help="of --resize; by default lossless PNG")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: the cores of this process)")
    return parser


def _failed(error: DistDiffusionError, where: str) -> int:
    print(f"error{where}: {error}", file=sys.stderr, flush=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
