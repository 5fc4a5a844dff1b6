"""Averages of any width after training (arXiv 2312.02696, section 3.2): combinations of those that a run left in
RUN/averages, whose profiles come nearest to the one asked for.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from dist_diffusion.config.averages import std_name
from dist_diffusion.errors import CheckpointError, ConfigError
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.storage import committed
from dist_diffusion.storage.committed import Committed
from dist_diffusion.weights.files import Export, header, opened
from dist_diffusion.weights.profiles import MAX_STD, Profile, Solution, exponent, solve
from dist_diffusion.weights.shapes import compare

FORMAT = 1
"""Of snapshots."""
LARGE_ERROR = 0.01
"""Of a profile: above, what was made is not quite the average asked for."""


@dataclass(frozen=True)
class Kept:
    """One average of one snapshot."""

    path: str
    average: str
    step: int
    profile: Profile


def snapshot_file(average: str) -> str:
    """The file of one average in a snapshot."""
    return f"{average}.safetensors"


def reconstruct(run: str, step: int | None, std: float) -> Export:
    """The average of relative width `std` at a snapshot's step, by default the newest's, from all snapshots up to it.

    Later ones would not bring its profile nearer. `info` says what it is made of, and the profile's error.
    """
    if not 0 < std < MAX_STD:
        raise ConfigError(f"ema.std={std:g}: a relative width is more than 0 and less than {MAX_STD:.4f}")
    used = _averages(_up_to(run, step))
    recipe, info = header(used[-1].path)
    target = Profile(used[-1].profile.updates, exponent(std))
    solution = _solved(run, used, target, std)
    parts = zip(used, solution.coefficients.tolist(), strict=True)
    made: dict[str, Any] = {
        "average": std_name(std),
        "made_of": [{"average": one.average, "step": one.step, "coefficient": c} for one, c in parts],
        "profile_error": solution.error,
    }
    return Export(_combined(used, solution.coefficients.tolist()), recipe, {**info, **made})


def _up_to(run: str, step: int | None) -> list[Committed]:
    """The run's snapshots up to that of `step`, verified; CheckpointError where there is none."""
    folder = RunDir(run).averages
    found = committed.scan(folder)
    for snapshot in found:
        committed.verify(snapshot, [])
        if snapshot.marker["format"] != FORMAT:
            raise CheckpointError(
                f"{snapshot.path} is of format {snapshot.marker['format']}; this version reads format {FORMAT}"
            )
    if not found:
        raise CheckpointError(
            f"{folder} has no snapshots, of which ema.std is made: a run leaves them that was trained with ema.stds, "
            "as [0.05,0.1], from its first commit on. ema=NAME exports an average that a commit has"
        )
    steps = [snapshot.marker["step"] for snapshot in found]
    if step is not None and step not in steps:
        raise CheckpointError(f"{folder} has no snapshot of step {step}; it has {', '.join(map(str, steps))}")
    used = found if step is None else found[: steps.index(step) + 1]
    for snapshot in used:
        committed.verify(snapshot)
    return used


def _averages(snapshots: Sequence[Committed]) -> list[Kept]:
    """All averages of some snapshots. Of two that had the same updates, as all between were skipped, the later one."""
    found: dict[Profile, Kept] = {}
    for snapshot in snapshots:
        for average, std in snapshot.marker["stds"].items():
            profile = Profile(snapshot.marker["updates"], exponent(std))
            path = os.path.join(snapshot.path, snapshot_file(average))
            found.pop(profile, None)
            found[profile] = Kept(path, average, snapshot.marker["step"], profile)
    return list(found.values())


def _solved(run: str, used: Sequence[Kept], target: Profile, std: float) -> Solution:
    if len(used) == 1 and used[0].profile != target:
        raise CheckpointError(
            f"{RunDir(run).averages} has only {used[0].average} of step {used[0].step} to make ema.std={std:g} from: "
            "train on to more commits, or with two of ema.stds, as [0.05,0.1]"
        )
    return solve([one.profile for one in used], target)


def _combined(used: Sequence[Kept], coefficients: Sequence[float]) -> dict[str, torch.Tensor]:
    """The sum, one parameter at a time, in float64; the result is fp32."""
    with ExitStack() as stack:
        streams = [stack.enter_context(opened(one.path)) for one in used]
        shapes = [{name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()} for stream in streams]  # noqa: SIM118
        for one, found in zip(used, shapes, strict=True):
            mismatch = compare(shapes[-1], found)
            if mismatch:
                raise CheckpointError(
                    f"{one.path} is of another network than {used[-1].path}: {mismatch}\nRemove the folders of those "
                    "that are not of this run"
                )
        return {name: _sum(name, shape, streams, coefficients) for name, shape in shapes[-1].items()}


def _sum(name: str, shape: tuple[int, ...], streams: Sequence[Any], coefficients: Sequence[float]) -> torch.Tensor:
    total = torch.zeros(shape, dtype=torch.float64)
    for stream, coefficient in zip(streams, coefficients, strict=True):
        total.add_(stream.get_tensor(name), alpha=coefficient)
    return total.float()
