"""`dist-diffusion COMMAND ...`: parse, resolve the launch, run the command, end with the right code."""

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

from dist_diffusion.distributed.environment import Topology, check_ranks_used, resolve
from dist_diffusion.distributed.parent import die_with_parent
from dist_diffusion.errors import BUG, DONE, USER_ERROR, DistDiffusionError, InternalError, StoppedError, StorageError
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.verdict import Verdict

COMMANDS = {
    "train": "start or resume a training run",
    "sample": "start or go on with a sampling job",
    "evaluate": "compare samples with a reference",
    "sweep": "compare guidance scales and modes",
    "nll": "bits per dimension of a dataset under a model",
    "export": "make an average of a run's weights a file of its own",
    "status": "what a run has done and is doing",
}
RECIPE_ARGUMENTS = (("CONFIG.yaml", "the recipe"), ("dotted.key=value", "settings that win over it"))
OWN_ARGUMENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "status": (("RUN", "a run directory, or its mirror in an object store"),),
    "export": (
        ("RUN", "a run, or RUN@STEP"),
        (
            "key=value",
            "out=FILE: where to (default RUN/export-AVERAGE-step-N.safetensors); "
            "ema=NAME: which of the commit's exports (default the first); "
            "ema.std=S: the average of relative width S, made from the run's snapshots (see ema.stds)",
        ),
    ),
}
"""Of the commands that read no recipe: what they take in its place."""
OWN_FLAGS = {"status": {"--json": "print it as JSON"}}
READING = ("status",)
"""They change nothing, a launch script's verdict included."""
LAUNCHERS_THAT_LEAVE_ORPHANS = ("openmpi", "mpich", "torchrun")
WAIT_FOR_LAUNCHER_S = 30.0
VERDICT_VARIABLE = "DIST_DIFFUSION_VERDICT"


def main(argv: Sequence[str] | None = None) -> None:
    """The console script. Never returns."""
    arguments, rest = parser().parse_known_args(argv)
    overrides = [*arguments.overrides, *rest]
    flags = [text for text in overrides if text.startswith("-")]
    if flags:
        parser().error(f"unknown option {flags[0]}")
    if arguments.command in READING:
        os.environ.pop(VERDICT_VARIABLE, None)
    topology = None
    try:
        topology = resolve(os.environ)
        if topology.rank == 0 and VERDICT_VARIABLE in os.environ:
            verdicts.clear(os.environ[VERDICT_VARIABLE])
        if topology.launcher in LAUNCHERS_THAT_LEAVE_ORPHANS:
            die_with_parent()
        check_ranks_used(topology, os.environ)
        command = importlib.import_module(f"dist_diffusion.cli.{arguments.command}")
        if arguments.command in OWN_ARGUMENTS:
            command.run(arguments.config, [*overrides, *arguments.flags], topology)
        else:
            command.run(arguments.config, overrides, arguments.print_config, topology)
    except DistDiffusionError as error:
        leave(error, topology)
    except KeyboardInterrupt:
        leave(StoppedError("interrupted: run the same command again to go on"), topology)
    except Exception as error:
        traceback.print_exc()
        leave(InternalError(f"{type(error).__name__}: {error}"), topology)
    leave(None, topology)


def parser() -> argparse.ArgumentParser:
    """Every command reads a recipe or names a run, with overrides."""
    top = argparse.ArgumentParser(prog="dist-diffusion", description="Train, sample and evaluate diffusion models.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=f"{help_text.capitalize()}.")
        command.set_defaults(overrides=[], flags=[])
        (first, meaning), *settings = OWN_ARGUMENTS.get(name, RECIPE_ARGUMENTS)
        command.add_argument("config", metavar=first, help=meaning)
        for rest, explained in settings:
            command.add_argument("overrides", nargs="*", default=[], metavar=rest, help=explained)
        for flag, explained in OWN_FLAGS.get(name, {}).items():
            command.add_argument(flag, dest="flags", action="append_const", const=flag, help=explained)
        if name not in OWN_ARGUMENTS:
            command.add_argument("--print-config", action="store_true", help="print the resulting recipe and end")
    return top


def leave(error: DistDiffusionError | None, topology: Topology | None) -> None:
    """Ends the process. An error that all ranks share is told by rank 0, which ends first."""
    rank, world = (topology.rank, topology.world_size) if topology else (0, 1)
    code = DONE if error is None else error.exit_code
    if error is not None and (rank == 0 or not error.agreed):
        where = f" (rank {rank})" if world > 1 and not error.agreed else ""
        print(f"dist-diffusion: {label(code)}{where}: {error}", file=sys.stderr, flush=True)
        tell_launch_script(error, rank)
    elif error is not None:
        # mpirun drops what rank 0 prints once another rank has failed: wait to be ended.
        time.sleep(WAIT_FOR_LAUNCHER_S)
    sys.stdout.flush()
    sys.stderr.flush()
    # Without collectives or destructors: after an error these could wait for ever for a peer.
    os._exit(code)


def tell_launch_script(error: DistDiffusionError, rank: int) -> None:
    """The verdict of a start that never held a run directory, where the launch script asked for one."""
    path = os.environ.get(VERDICT_VARIABLE)
    if path and not error.recorded:
        found = Verdict(error.exit_code, str(error), rank, None, verdicts.launch_id(os.environ))
        # The message is out already; a path that cannot be written must not hide it.
        with suppress(StorageError):
            verdicts.record(path, found)


def label(code: int) -> str:
    """The first word of the message."""
    return {USER_ERROR: "error", BUG: "bug"}.get(code, "stopped")
