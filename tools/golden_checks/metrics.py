"""Metrics of evaluation on given features and logits."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dist_diffusion.evaluation import metrics
from golden_checks.folder import Archive, Folder
from golden_checks.report import MissingError, Row, distance, measured

METRICS = 1e-6
"""Relative."""
SCORE = re.compile(r"is_(\d+)")
ROUNDING = 1e-12
"""What a value of 0 may be out by."""


def check_metrics(folder: Folder, archive: Archive) -> Iterator[Row]:
    """A row for each value of metrics.json."""
    for name, reference in folder.jsons.get("metrics", {}).items():
        yield measured(f"metrics {name}", METRICS, metric_error, archive, name, reference)


def metric_error(archive: Archive, name: str, reference: Any) -> float:
    """Of one value, or several."""
    wanted = np.atleast_1d(np.array(reference, dtype=np.float64))
    ours = np.atleast_1d(np.array(metric(name)(archive), dtype=np.float64))
    return distance(ours, wanted, np.maximum(np.abs(wanted), ROUNDING / METRICS))


def metric(name: str) -> Callable[[Archive], Any]:
    """Our metric of a name in metrics.json."""
    if found := SCORE.fullmatch(name):
        return lambda archive: metrics.score(archive["logits"], int(found[1]))
    if name.startswith("fid"):
        return lambda archive: frechet_distance(archive["real"], archive["fake"])
    if name.startswith("sfid"):
        return lambda archive: frechet_distance(archive["spatial_real"], archive["spatial_fake"])
    if name in ("precision", "recall"):
        return lambda archive: precision_recall(archive)[name == "recall"]
    if name.startswith("pr_"):
        return precision_recall
    raise MissingError(f"metric {name} is not known")


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Of two sets of features."""
    return metrics.frechet_distance(*metrics.gaussian(real), *metrics.gaussian(fake))


def precision_recall(archive: Archive) -> tuple[float, float]:
    """Of the fake features against the real ones."""
    real, fake = archive["real"], archive["fake"]
    return metrics.precision_recall(fake, real, metrics.squared_radii(fake), metrics.squared_radii(real))
