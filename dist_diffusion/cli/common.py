"""What the commands share."""

from collections.abc import Iterator
from contextlib import contextmanager

from dist_diffusion.errors import DistDiffusionError


@contextmanager
def told_alike() -> Iterator[None]:
    """For work that is the same in every rank, such as reading a recipe: its error is told once, by rank 0."""
    try:
        yield
    except DistDiffusionError as error:
        error.agreed = True
        raise
