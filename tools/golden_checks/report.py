"""One row a case: what was compared, how far it is out, and how far it may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec

import numpy as np

Params = ParamSpec("Params")


class MissingError(Exception):
    """What a case needs is not in the folder, or is not known here: it was not run."""


@dataclass(frozen=True)
class Row:
    """The outcome of one case. No error: it was not run, and the note says why."""

    name: str
    error: float | None
    tolerance: float
    note: str = ""

    @property
    def verdict(self) -> str:
        """A pass, a FAIL, or not run."""
        if self.error is None:
            return "not run"
        # A NaN is no pass.
        return "pass" if self.error <= self.tolerance else "FAIL"

    def __str__(self) -> str:
        error = "-" if self.error is None else f"{self.error:.2e}"
        return f"{self.name:<52} {error:>9} {self.tolerance:>9.0e}  {self.verdict}  {self.note}".rstrip()


HEADER = f"{'case':<52} {'error':>9} {'allowed':>9}"


def measured(
    name: str, tolerance: float, error: Callable[Params, float], *args: Params.args, **kwargs: Params.kwargs
) -> Row:
    """The row of a case. Whatever goes wrong in it is told in its row: the other cases are run all the same."""
    try:
        return Row(name, error(*args, **kwargs), tolerance)
    except MissingError as reason:
        return not_run(name, str(reason))
    except Exception as reason:
        return Row(name, math.inf, tolerance, f"{type(reason).__name__}: {' '.join(str(reason).split())}")


def not_run(name: str, why: str) -> Row:
    """The row of something in the folder that no case covers."""
    return Row(name, None, 0.0, why)


def distance(ours: np.ndarray, reference: np.ndarray, scale: np.ndarray | float = 1.0) -> float:
    """The largest |ours - reference| / scale; equal entries, infinite ones too, are 0 apart.

    ValueError where the shapes differ.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"ours has shape {ours.shape}, the folder's {reference.shape}")
    mine, theirs = ours.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        errors = np.where(mine == theirs, 0.0, np.abs(mine - theirs) / scale)
    return float(np.max(errors, initial=0.0))


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """The largest |ours - reference| / |reference|; what is 0 must be 0."""
    return distance(ours, reference, np.where(reference == 0, np.finfo(np.float64).tiny, np.abs(reference)))
