"""`python tools/bench.py SUBCOMMAND [--json FILE]`: parts of the system against the code that they stand in for.

Outputs are compared before anything is timed. Ours and the peer alternate in one process, so that what else the
machine does meets both; a row is the medians, their spread and their ratio, above 1 where ours is faster.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also runs where the package is not installed

from benchmarks import adm, checkpoint, data, options, tricks
from benchmarks.timing import Row, table

from dist_diffusion.errors import USER_ERROR, DistDiffusionError, StorageError

Measure = Callable[[argparse.Namespace], list[Row]]
SUBCOMMANDS: dict[str, tuple[Measure, str]] = {
    "model": (
        lambda arguments: adm.bench_model(arguments.seconds),
        "the network's forward pass against guided-diffusion's",
    ),
    "train": (
        lambda arguments: bench_train(arguments),
        "the whole training step against guided-diffusion's, and with each engine option against without it",
    ),
    "tricks": (
        lambda arguments: tricks.bench_tricks(arguments.seconds),
        "the training step against itself without each of the things that make it fast",
    ),
    "data": (
        lambda arguments: data.bench_data(
            arguments.seconds,
            all_threads(arguments),
            arguments.small,
            arguments.large,
        ),
        "the loader and make_shards against bare loops, guided-diffusion's loader and webdataset's",
    ),
    "checkpoint": (
        lambda arguments: checkpoint.bench_checkpoint(arguments.seconds, all_threads(arguments), arguments.folder),
        "saves and resumes of two ranks against bare copies, writes and reads and against DeepSpeed's own",
    ),
}


def main() -> None:
    """Runs one subcommand, prints its table, writes its JSON."""
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    try:
        if arguments.json:
            check_writable(arguments.json)
        rows = SUBCOMMANDS[arguments.subcommand][0](arguments)
    except DistDiffusionError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")


def bench_train(arguments: argparse.Namespace) -> list[Row]:
    """The options have a third of the time; what is compiled, which takes minutes, has as much again."""
    share, threads = arguments.seconds / 3, all_threads(arguments)
    rows = [*adm.bench_train(2 * share), *options.bench_options(share, threads)]
    return [*rows, *(options.bench_compile(share, threads) if arguments.compile else [])]


def check_writable(path: Path) -> None:
    """StorageError now and not after minutes of measuring. What the file holds stays until the rows are there."""
    try:
        path.open("a").close()
    except OSError as error:
        raise StorageError(f"--json {path} cannot be written ({error.strerror}): choose another path") from error


def all_threads(arguments: argparse.Namespace) -> int:
    """That the processes of a measurement share."""
    return arguments.threads or len(os.sched_getaffinity(0))


def num_threads(text: str) -> int:
    """An argument of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, (_, meaning) in SUBCOMMANDS.items():
        command = commands.add_parser(name, help=meaning)
        command.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
        command.add_argument("--seconds", type=float, default=180.0, help="time to measure for (%(default)s)")
        command.add_argument("--threads", type=num_threads, help="CPU threads; default: as torch chooses")
        if name == "train":
            command.add_argument("--compile", action="store_true", help="engine.compile too, which takes minutes more")
        if name == "data":
            command.add_argument("--small", type=Path, metavar="FOLDER", help="class folders of 32-pixel JPEGs to read")
            command.add_argument("--large", type=Path, metavar="FOLDER", help="class folders of photographs to read")
        if name == "checkpoint":
            command.add_argument("--folder", type=Path, help="an existing one, to write to; default: the temporary one")
    return top


if __name__ == "__main__":
    main()
