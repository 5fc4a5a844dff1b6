"""Errors that a user or a launcher acts on. Each takes one message: which file, key, shard or rank, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

DONE = 0
BUG = 1
USER_ERROR = 2
PLEASE_REQUEUE = 75

PEER_LOST = "peer lost"
"""How the message of a PeerLostError begins: a verdict that says only this yields to the peer's own."""


class DistDiffusionError(Exception):
    """Base of the package's errors; `exit_code` is what the process ends with.

    `agreed` is set where every rank raises the same error: then one of them, rank 0, speaks for all.
    `recorded` is set once a run directory's verdict holds it.
    """

    exit_code = USER_ERROR
    agreed = False
    recorded = False

    def __init__(self, message: str) -> None:
        super().__init__(message)


def told(error: Exception) -> str:
    """What to say of an error that ends one piece of work alone; one that is not ours is named by its type, too."""
    return str(error) if isinstance(error, DistDiffusionError) else f"{type(error).__name__}: {error}"


@contextmanager
def alike() -> Iterator[None]:
    """For work that is the same in every rank, such as reading a recipe: its error is told once, by rank 0."""
    try:
        yield
    except DistDiffusionError as error:
        error.agreed = True
        raise


class ConfigError(DistDiffusionError):
    """A recipe, an override or a combination of settings is wrong."""


class DataError(DistDiffusionError):
    """A dataset is missing, damaged or not what its manifest says."""


class StorageError(DistDiffusionError):
    """A path cannot be read or written."""


class CheckpointError(DistDiffusionError):
    """A checkpoint or export is missing, damaged, or of another model."""


class RunInUseError(DistDiffusionError):
    """Another live process owns the run or job directory."""


class LaunchError(DistDiffusionError):
    """The launcher's environment contradicts itself."""


class NonFiniteError(DistDiffusionError):
    """Loss, gradients, samples or a likelihood are not finite."""


class InternalError(DistDiffusionError):
    """A bug: the traceback is in the rank's log."""

    exit_code = BUG


class PeerLostError(DistDiffusionError):
    """A collective failed because another rank is gone: run the same command again."""

    exit_code = PLEASE_REQUEUE


class DriftError(DistDiffusionError):
    """A rank's replica of the weights is no longer the others': run the same command again, from the last commit."""

    exit_code = PLEASE_REQUEUE


class StoppedError(DistDiffusionError):
    """A signal asked for a stop; the state is saved: run the same command again."""

    exit_code = PLEASE_REQUEUE
