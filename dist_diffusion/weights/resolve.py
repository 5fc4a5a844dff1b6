"""From what a user names (RUN, RUN@STEP or an export) to the export's file."""

import os

from dist_diffusion.errors import CheckpointError, ConfigError
from dist_diffusion.runs.layout import RunDir, step_name
from dist_diffusion.storage import committed, files


def export_name(average: str) -> str:
    """The file of one average (ema_0, ..., or weights) in a commit."""
    return f"export-{average}.safetensors"


def find(path: str, average: str | None) -> str:
    """The export file that `path` names: of a run the newest commit's, or RUN@STEP's."""
    if files.exists(path) and not files.is_dir(path):
        if average is not None:
            raise ConfigError(
                f"ema={average} chooses among a run's exports; {path} is one export already: leave it out"
            )
        return path
    run, step = run_and_step(path)
    commits = committed.scan(RunDir(run).checkpoints)
    if step is not None:
        commits = [commit for commit in commits if commit.name == step_name(step)]
    if not commits:
        of_step = "" if step is None else f" of step {step}"
        raise CheckpointError(f"{path}: no committed checkpoint{of_step} in {run}")
    return export_in(commits[-1], average)


def run_and_step(path: str) -> tuple[str, int | None]:
    """The folder that RUN or RUN@STEP names, and the step if it names one."""
    run, step = (path, "") if files.exists(path) or "@" not in path else path.rsplit("@", 1)
    if step and not step.isdecimal():
        raise CheckpointError(f"{path}: the step after @ is not a number")
    if not files.is_dir(run):
        raise CheckpointError(f"{path}: no such run or export")
    return run, int(step) if step else None


def export_in(commit: committed.Committed, average: str | None) -> str:
    """The file of a commit's export, verified: the named average, else the first.

    CheckpointError lists what there is; StorageError names a damaged file.
    """
    committed.verify(commit, [])
    names = commit.marker["exports"]
    if not names or average not in (None, *names):
        raise CheckpointError(f"{commit.path} has no export {average}; it has {', '.join(names) or 'none'}")
    name = export_name(average or names[0])
    committed.verify(commit, [name])
    return os.path.join(commit.path, name)
