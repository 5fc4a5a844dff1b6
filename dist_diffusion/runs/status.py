"""What a run has done and is doing, from the files of its directory or of its mirror; nothing is written."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from dist_diffusion.errors import BUG, DONE, PLEASE_REQUEUE, USER_ERROR, ConfigError
from dist_diffusion.runs import lease as leases
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.keeping import best, scores
from dist_diffusion.runs.layout import RunDir, step_of
from dist_diffusion.runs.lease import Owner
from dist_diffusion.runs.rows import last_row
from dist_diffusion.runs.verdict import Verdict
from dist_diffusion.storage import committed, files, local
from dist_diffusion.storage.committed import MARKER, Committed

MEANINGS = {
    DONE: "done",
    BUG: "a bug",
    USER_ERROR: "something to correct",
    PLEASE_REQUEUE: "please requeue",
}
STILL_S = 60.0
"""A lease whose counter has stood for so long is taken over by the next start."""


@dataclass(frozen=True)
class Commit:
    """The newest one. `age_s` is by its file's time, None for a mirror; `bytes` is None where the marker is damaged."""

    step: int
    path: str
    marker_verifies: bool
    bytes: int | None
    age_s: float | None


@dataclass(frozen=True)
class Best:
    """The commit that checkpoint.best keeps, of those that are there."""

    step: int
    column: str
    value: float


@dataclass(frozen=True)
class Owned:
    """Who holds the lease. `alive` is None where this host cannot tell; `counter_age_s` is by the file's time."""

    host: str
    pid: int
    job: str
    alive: bool | None
    counter_age_s: float

    @property
    def may_be_running(self) -> bool:
        """Alive; or, where that cannot be told, lately."""
        return self.counter_age_s < STILL_S if self.alive is None else self.alive


@dataclass(frozen=True)
class Ended:
    """exit.json. `earlier_launch`: it is not of the launch that has last begun here."""

    code: int
    meaning: str
    reason: str
    rank: int
    step: int | None
    host: str
    time: str
    log: str | None
    launch_id: str
    earlier_launch: bool


@dataclass(frozen=True)
class Status:
    """All of it; the fields are the keys of `status --json`. What is not known is None."""

    run: str
    task: str
    step: int
    """Completed steps: of the last row of metrics.jsonl or the last commit, whichever is later."""
    steps: int
    images: int
    loss: float | None
    """Of the last row of metrics.jsonl, as are the next four."""
    loss_mean: float | None
    images_per_s: float | None
    skipped_steps: int | None
    replaced_samples: int | None
    eta_s: float | None
    """At that speed; None where nothing is running, or left to do."""
    last_commit: Commit | None
    commits: list[int]
    best: Best | None
    world_size: int | None
    device: str | None
    launch_id: str | None
    lease: Owned | None
    verdict: Ended | None
    mirror: str | None
    disk_used_bytes: int
    disk_free_bytes: int | None


def read_status(path: str, observer: Owner, now: float) -> Status:
    """The status of the run in the directory or mirror `path`, at `now` (seconds since 1970), seen by `observer`.

    ConfigError where no run has begun there; StorageError where its files cannot be read.
    """
    run, remote = RunDir(path), files.is_remote(path)
    recipe = _read_recipe(run)
    row = last_row(run.metrics) or {}
    commits = committed.scan(run.checkpoints)
    steps, batch = recipe["train"]["steps"], recipe["train"]["global_batch"]
    step = max([row.get("step", 0), *(step_of(commit.name) for commit in commits[-1:])])
    owned = _read_lease(run.lease, observer, now)
    environment = files.read_json(run.environment) if files.exists(run.environment) else {}
    rate = row.get("images_per_s")
    running = owned is not None and owned.may_be_running and step < steps
    return Status(
        run=path,
        task=recipe["task"],
        step=step,
        steps=steps,
        images=step * batch,
        loss=row.get("loss"),
        loss_mean=row.get("loss_mean"),
        images_per_s=rate,
        skipped_steps=row.get("skipped_steps"),
        replaced_samples=row.get("replaced_samples"),
        eta_s=(steps - step) * batch / rate if running and rate else None,
        last_commit=_described(commits[-1], now) if commits else None,
        commits=[step_of(commit.name) for commit in commits],
        best=_best(recipe["checkpoint"], run, [step_of(commit.name) for commit in commits]),
        world_size=environment.get("world_size"),
        device=environment.get("device"),
        launch_id=environment.get("launch_id"),
        lease=owned,
        verdict=_ended(verdicts.read(run.verdict), environment.get("launch_id")),
        mirror=recipe["checkpoint"].get("mirror"),
        disk_used_bytes=sum((files.tree(path) if remote else local.tree(path)).values()),
        disk_free_bytes=None if remote else shutil.disk_usage(path).free,
    )


def _read_recipe(run: RunDir) -> dict[str, Any]:
    """config.yaml as it is: one of another version is no reason to say nothing."""
    if not files.exists(run.config):
        if not files.exists(run.path):
            raise ConfigError(f"{run.path}: no such run directory")
        raise ConfigError(f"{run.path} has no config.yaml: it is no run directory, or no run has begun there yet")
    try:
        recipe = yaml.safe_load(files.read_bytes(run.config))
        numbers = recipe["train"]["steps"], recipe["train"]["global_batch"]
        is_recipe = isinstance(recipe["task"], str) and isinstance(recipe["checkpoint"], dict)
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        is_recipe = False
    if not is_recipe or not all(isinstance(number, int) for number in numbers):
        raise ConfigError(f"{run.path} is no run directory: its config.yaml is not the recipe of a training")
    found: dict[str, Any] = recipe
    return found


def _described(commit: Committed, now: float) -> Commit:
    listed = commit.marker.get("files", {}).values()
    return Commit(
        step=step_of(commit.name),
        path=commit.path,
        marker_verifies=bool(commit.marker),
        bytes=sum(record["size"] for record in listed) if commit.marker else None,
        age_s=_age(os.path.join(commit.path, MARKER), now),
    )


def _best(options: Mapping[str, Any], run: RunDir, steps: Sequence[int]) -> Best | None:
    column = options.get("best")
    worth = scores(run.validation, column)
    step = best(steps, worth, options.get("best_is", "lowest"))
    return None if column is None or step is None else Best(step, column, worth[step])


def _read_lease(path: str, observer: Owner, now: float) -> Owned | None:
    content, age = leases.read(path), _age(path, now)
    if content is None or age is None:
        return None
    owner = Owner(**content["owner"])
    alive = None
    if owner.is_dead_for(observer):
        alive = False
    elif owner.boot_id and replace(observer, pid=owner.pid, start_time=owner.start_time, job=owner.job) == owner:
        alive = True
    return Owned(owner.host, owner.pid, owner.job, alive, age)


def _ended(verdict: Verdict | None, launch_id: str | None) -> Ended | None:
    if verdict is None:
        return None
    return Ended(
        code=verdict.code,
        meaning=MEANINGS.get(verdict.code, "unknown"),
        reason=verdict.reason,
        rank=verdict.rank,
        step=verdict.step,
        host=verdict.host,
        time=verdict.time,
        log=verdict.log,
        launch_id=verdict.launch_id,
        earlier_launch=verdict.launch_id != launch_id,
    )


def _age(path: str, now: float) -> float | None:
    """Seconds since a file was written, as its host's clock has it; None where it is on no file system of this one."""
    try:
        return max(0.0, now - os.stat(path).st_mtime)
    except FileNotFoundError:
        return None
