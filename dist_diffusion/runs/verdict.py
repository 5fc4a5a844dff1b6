"""How a start ended, as a file: launchers change exit codes, and the first failure must be the one that is told."""

import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from dist_diffusion.errors import DONE, PEER_LOST, PLEASE_REQUEUE, StorageError
from dist_diffusion.storage import files, publish


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Verdict:
    """Exit code and reason, and the rank that says so. `step` is None before the first; `log` is that rank's log."""

    code: int
    reason: str
    rank: int
    step: int | None
    launch_id: str
    host: str = field(default_factory=socket.gethostname)
    log: str | None = None
    time: str = field(default_factory=_now)

    @property
    def is_peer_lost(self) -> bool:
        """Whether it only reports that another rank is gone."""
        return self.code == PLEASE_REQUEUE and self.reason.startswith(PEER_LOST)


def launch_id(env: Mapping[str, str]) -> str:
    """Names one launch: "JOB_TASK.RESTARTS" of SLURM, "local" without it. The same in all ranks."""
    job = env.get("SLURM_JOB_ID")
    if not job:
        return "local"
    task = env.get("SLURM_ARRAY_TASK_ID")
    return f"{job}{f'_{task}' if task else ''}.{env.get('SLURM_RESTART_COUNT') or 0}"


def unique_launch_id(env: Mapping[str, str]) -> str:
    """For rank 0 to hand to all: as launch_id, but without SLURM told apart from every other launch."""
    name = launch_id(env)
    return name if env.get("SLURM_JOB_ID") else f"{name}-{secrets.token_hex(4)}"


def record(path: str, verdict: Verdict) -> bool:
    """Writes the verdict unless one of this launch stands; returns whether it was written.

    "Peer lost" yields to another rank's own error; a verdict of another launch yields to any.
    """
    if publish.create_exclusive(path, _encode(verdict)):
        return True
    standing = read(path)
    if standing is not None and not _yields(standing, verdict):
        return False
    publish.write_bytes(path, _encode(verdict))
    return True


def read(path: str) -> Verdict | None:
    """The verdict in a file; None where there is none."""
    if not files.exists(path):
        return None
    try:
        return Verdict(**files.read_json(path))
    except TypeError as err:
        raise StorageError(f"{path} is not a verdict ({err}); remove it") from err


def clear(path: str) -> None:
    """Removes a verdict, if there is one: a new start begins."""
    publish.remove(path)


def _encode(verdict: Verdict) -> bytes:
    return (json.dumps(asdict(verdict), indent=2) + "\n").encode()


def _yields(standing: Verdict, verdict: Verdict) -> bool:
    if standing.launch_id != verdict.launch_id:
        return True
    return standing.is_peer_lost and not verdict.is_peer_lost and verdict.code != DONE
