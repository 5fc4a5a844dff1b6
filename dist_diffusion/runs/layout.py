"""Where the parts of a run directory lie. A run directory is a POSIX path."""

import os
from dataclasses import dataclass

STEP_DIGITS = 9


def step_name(step: int) -> str:
    """The name of a step's commit; zero-padded so that names sort by step."""
    return f"step-{step:0{STEP_DIGITS}d}"


def step_of(name: str) -> int:
    """The step of a commit's name."""
    return int(name.removeprefix("step-"))


@dataclass(frozen=True)
class RunDir:
    """The paths below one run directory; nothing is made or read here."""

    path: str

    @property
    def config(self) -> str:
        """The resolved recipe."""
        return os.path.join(self.path, "config.yaml")

    @property
    def environment(self) -> str:
        """Versions, command line and launch environment of the last start."""
        return os.path.join(self.path, "environment.json")

    @property
    def metrics(self) -> str:
        """One JSON row a logged step."""
        return os.path.join(self.path, "metrics.jsonl")

    @property
    def stale_metrics(self) -> str:
        """Rows of steps that were lost by a kill and done again."""
        return os.path.join(self.path, "metrics.stale.jsonl")

    @property
    def validation(self) -> str:
        """One JSON row a validated commit."""
        return os.path.join(self.path, "validation.jsonl")

    @property
    def stale_validation(self) -> str:
        """Rows of commits that are no longer of the run."""
        return os.path.join(self.path, "validation.stale.jsonl")

    @property
    def verdict(self) -> str:
        """How the last start ended."""
        return os.path.join(self.path, "exit.json")

    @property
    def lease(self) -> str:
        """Who works here now."""
        return os.path.join(self.path, "lease.json")

    @property
    def checkpoints(self) -> str:
        """Folder of committed folders."""
        return os.path.join(self.path, "checkpoints")

    @property
    def averages(self) -> str:
        """Folder of committed folders: the averages from which others are made."""
        return os.path.join(self.path, "averages")

    @property
    def dry_run(self) -> str:
        """Folder of the dry run's checkpoint, which is removed at its end."""
        return os.path.join(self.path, "dry-run")

    @property
    def tensorboard(self) -> str:
        """Folder of event files."""
        return os.path.join(self.path, "tensorboard")

    @property
    def logs(self) -> str:
        """Folder of the ranks' logs."""
        return os.path.join(self.path, "logs")

    @property
    def parents(self) -> tuple[str, ...]:
        """The names of the folders of committed folders."""
        return tuple(map(os.path.basename, (self.checkpoints, self.averages)))

    @property
    def not_mirrored(self) -> tuple[str, ...]:
        """The names of what is of this directory alone."""
        return tuple(map(os.path.basename, (self.lease, self.dry_run)))

    def log(self, rank: int) -> str:
        """The log file of one rank."""
        return os.path.join(self.logs, f"rank-{rank}.log")
