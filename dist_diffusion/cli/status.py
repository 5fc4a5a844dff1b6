"""`dist-diffusion status`."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

from dist_diffusion.cli.recipe import check_alone
from dist_diffusion.distributed.environment import Topology
from dist_diffusion.errors import ConfigError, alike
from dist_diffusion.observe.throughput import human
from dist_diffusion.runs.lease import Owner
from dist_diffusion.runs.status import Commit, Owned, Status, read_status
from dist_diffusion.storage import files

JSON = "--json"


def run(run_path: str, arguments: Sequence[str], topology: Topology) -> None:
    """Prints what a run has done and is doing; nothing is changed."""
    with alike():
        unknown = [text for text in arguments if text != JSON]
        if unknown:
            raise ConfigError(f"status takes a run and nothing else, not {unknown[0]}")
        check_alone("status", topology)
    status = read_status(run_path, Owner.of_this_process(os.environ), time.time())
    print(json.dumps(asdict(status), indent=2) if JSON in arguments else in_words(status))


def in_words(status: Status) -> str:
    """An aligned block, one subject a line."""
    counts = status.skipped_steps, status.replaced_samples
    lines = {
        "run": f"{status.run}, task {status.task}",
        "step": f"{status.step} of {status.steps} ({status.step / status.steps:.1%}), {status.images} images",
        "last commit": _commit(status.last_commit),
        "commits": ", ".join(map(str, status.commits)) or None,
        "best": f"step {status.best.step}: {status.best.column} {status.best.value:.4g}" if status.best else None,
        "loss": None if status.loss is None else f"{status.loss:.4f}{_mean(status.loss_mean)}",
        "speed": _speed(status),
        "left out": f"{counts[0]} steps skipped, {counts[1]} samples replaced" if any(counts) else None,
        "ranks": None if status.world_size is None else f"{status.world_size} on {status.device}",
        "running": "a mirror does not tell" if files.is_remote(status.run) else _running(status.lease),
        "verdict": _verdict(status),
        "mirror": status.mirror,
        "disk": _disk(status),
    }
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in lines.items() if text is not None)


def _commit(commit: Commit | None) -> str:
    if commit is None:
        return "none yet: a kill now loses everything"
    if not commit.marker_verifies:
        return f"step {commit.step}, DAMAGED marker: {commit.path}"
    age = "" if commit.age_s is None else f", {human(commit.age_s)} ago"
    return f"step {commit.step}{age}, {_size(commit.bytes or 0)}, marker verifies"


def _mean(loss: float | None) -> str:
    return "" if loss is None else f", mean since the row before {loss:.4f}"


def _speed(status: Status) -> str | None:
    if status.images_per_s is None:
        return None
    left = "" if status.eta_s is None else f", {human(status.eta_s)} left"
    return f"{status.images_per_s:.1f} img/s{left}"


def _running(lease: Owned | None) -> str:
    if lease is None:
        return "no"
    who = f"process {lease.pid} on {lease.host}{f', job {lease.job}' if lease.job else ''}"
    if lease.alive is not None:
        return f"yes: {who}" if lease.alive else f"no: {who} held the lease and is gone"
    ago = f"its counter last moved {human(lease.counter_age_s)} ago, by that file's time"
    return f"{'probably' if lease.may_be_running else 'probably not'}: {who} holds the lease; {ago}"


def _verdict(status: Status) -> str:
    verdict = status.verdict
    if verdict is None:
        killed = status.lease is not None and not status.lease.may_be_running
        return "none: all its processes were killed" if killed else "none"
    step = "" if verdict.step is None else f" at step {verdict.step}"
    who = f"rank {verdict.rank} on {verdict.host}{step}, {verdict.time}, launch {verdict.launch_id}"
    before = " (of an earlier launch)" if verdict.earlier_launch else ""
    reason = "" if verdict.reason == verdict.meaning else f": {verdict.reason}"
    return f"{verdict.code}, {verdict.meaning}{before}{reason} ({who})"


def _disk(status: Status) -> str:
    free = "" if status.disk_free_bytes is None else f", {_size(status.disk_free_bytes)} free there"
    return f"{_size(status.disk_used_bytes)}{free}"


def _size(count: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
