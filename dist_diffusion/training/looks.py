"""What is looked at after a commit, from its export: a preview, and the losses on held-out samples."""

import os

from dist_diffusion.config.schema import DiffusionRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, DataError, NonFiniteError, StorageError, alike
from dist_diffusion.training.preview import preview
from dist_diffusion.training.state import Run
from dist_diffusion.training.validation import validate
from dist_diffusion.weights.resolve import export_name

FORGIVEN = (CheckpointError, DataError, NonFiniteError, StorageError)
"""What may go wrong with a look at a commit without an end to the training: it is said aloud."""


def look_at(run: Run, step: int) -> None:
    """Has the looks that are due at the newest commit, of `step`."""
    folder = run.checkpointer.folder_of(step)
    with run.where.during("preview"):
        show_preview(run, step, folder)
        show_validation(run, step, folder)


def put_off(run: Run, step: int) -> None:
    """Says which looks that are due a stopping run leaves out: a launcher gives it little time."""
    recipe = run.recipe
    wanted = {
        "preview": isinstance(recipe, DiffusionRecipe)
        and recipe.preview.num_images > 0
        and is_due(run, step, recipe.preview.every_commits),
        "validation": run.validation is not None and is_due(run, step, recipe.validation.every_commits),
    }
    left_out = [name for name, is_wanted in wanted.items() if is_wanted]
    if left_out:
        run.console.say(f"stopping: no {' and no '.join(left_out)} of step {step} now")


def is_due(run: Run, step: int, every_commits: int) -> bool:
    """Whether the newest commit, of `step`, is one to look at: every so many, and at the end."""
    return run.commits % every_commits == 0 or step >= run.recipe.train.steps


def show_preview(run: Run, step: int, folder: str) -> None:
    """A sample grid of the commit in `folder` into TensorBoard."""
    recipe = run.recipe
    if not isinstance(recipe, DiffusionRecipe) or not recipe.preview.num_images:
        return
    if not is_due(run, step, recipe.preview.every_commits):
        return
    average = run.checkpointer.exports[0]
    try:
        image = preview(recipe, os.path.join(folder, export_name(average)), run.group)
    except FORGIVEN as error:
        run.console.say(f"no preview of step {step}: {error}")
        return
    if run.group.rank == 0:
        run.observer.image(f"samples/{average}", image, step)


def show_validation(run: Run, step: int, folder: str) -> None:
    """The losses of the commit in `folder` on held-out samples."""
    if run.validation is None or not is_due(run, step, run.recipe.validation.every_commits):
        return
    average = run.checkpointer.exports[0]
    try:
        means = validate(run.validation, os.path.join(folder, export_name(average)), run.group)
    except FORGIVEN as error:
        run.console.say(f"no validation of step {step}: {error}")
        return
    best = run.recipe.checkpoint.best
    if best is not None and best not in means:
        with alike():
            raise ConfigError(f"checkpoint.best={best}: the validation gives {', '.join(means)}")
    run.observer.validated(step, average, run.validation.images.num_images, means)


def catch_up(run: Run, folder: str) -> None:
    """The validation of the commit in `folder`, from which the run resumes, where a kill came between the two."""
    every = run.recipe.validation.every_commits
    if run.validation is None or not is_due(run, run.step, every) or run.observer.has_validated(run.step):
        return
    run.console.say(f"step {run.step} was committed, but not validated")
    with run.where.during("preview"):
        show_validation(run, run.step, folder)
