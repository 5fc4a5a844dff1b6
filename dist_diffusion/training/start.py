"""Where a run begins: at its newest commit, at another model's weights, or at fresh ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from dist_diffusion.config.load import from_dict
from dist_diffusion.config.protected import ALLOW, changes, refuse_protected
from dist_diffusion.diffusion.timesteps import WARM, LossHistory
from dist_diffusion.distributed.agreement import broadcast
from dist_diffusion.engine.checkpoint import Checkpointer
from dist_diffusion.engine.snapshots import Snapshots
from dist_diffusion.errors import CheckpointError, ConfigError, alike
from dist_diffusion.observe.console import Console
from dist_diffusion.runs import lease as leases
from dist_diffusion.runs.keeping import scores
from dist_diffusion.storage import committed
from dist_diffusion.storage.committed import Committed
from dist_diffusion.training.initial import Initial, read_initial
from dist_diffusion.training.place import Place
from dist_diffusion.training.prepare import Prepared
from dist_diffusion.weights.shapes import Shapes, network_shapes


@dataclass(frozen=True)
class Start:
    """Where a run begins: at a commit, or at step 0."""

    checkpointer: Checkpointer
    snapshots: Snapshots
    commit: Committed | None
    damaged: list[Committed]
    """Newer ones that cannot be used."""
    initial: Initial | None
    """The weights of init_from, of a run without a commit."""

    @property
    def step(self) -> int:
        """Completed steps."""
        return 0 if self.commit is None else int(self.commit.marker["step"])


def find_start(prepared: Prepared, place: Place, lease: leases.Lease | None) -> Start:
    """The newest commit, if it is of this run. Before anything is written: a refused start leaves the run as it was."""
    group, console = place.group, place.console
    attempt = broadcast(group, committed.new_attempt())

    def may_write() -> bool:
        return lease is not None and lease.holds()

    snapshots = Snapshots(place.run_dir.averages, attempt, may_write)
    checkpointer = Checkpointer(
        place.run_dir.checkpoints,
        prepared.recipe,
        group,
        attempt,
        console.say,
        may_write=may_write,
        scores=lambda: scores(place.run_dir.validation, prepared.recipe.checkpoint.best),
        snapshots=snapshots,
    )
    commit, damaged = checkpointer.newest()
    initial = None
    if commit is not None:
        check_same_run(prepared, commit, console)
    elif prepared.recipe.init_from is not None:
        initial = read_initial(prepared.recipe, prepared.manifest.classes, group)
    return Start(checkpointer, snapshots, commit, damaged, initial)


def check_same_run(prepared: Prepared, commit: Committed, console: Console) -> None:
    """Refuses a commit of other data or another recipe; harmless differences are said aloud."""
    recipe, marker = prepared.recipe, commit.marker
    before, now = marker["extra"]["manifest"], prepared.manifest.checksum
    with alike():
        if before != now and not recipe.allow_config_change:
            raise CheckpointError(
                f"{commit.path} was trained on a manifest with checksum {before[:12]}, data.shards="
                f"{recipe.data.shards} has {now[:12]}: give the data it was made with, or another run_dir; to go on "
                f"all the same, {ALLOW}=true"
            )
        changed = changes(from_dict(marker["recipe"], commit.path), recipe)
        refuse_protected(changed, commit.path, recipe.allow_config_change)
        shapes = {name: tuple(shape) for name, shape in marker["state"]["shapes"].items()}
        refuse_another_network(commit.path, shapes, network_shapes(recipe.model))
        if marker["step"] > recipe.train.steps:
            raise ConfigError(
                f"train.steps={recipe.train.steps}, but {commit.path} has done {marker['step']} steps already"
            )
    if before != now:
        console.say(f"changed since the commit: the data's checksum: {before[:12]} -> {now[:12]}")
        if recipe.model.num_classes:
            say_other_classes(marker["extra"]["classes"], prepared.manifest.classes, console.say)
    for change in changed:
        console.say(f"changed since the commit: {change}")


def refuse_another_network(commit: str, before: Shapes, now: Shapes) -> None:
    """CheckpointError names the first parameter that differs."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{commit} is of another network: {name} is {before.get(name)} there, {now.get(name)} in this recipe: "
                "start a new run_dir with init_from"
            )


def say_other_classes(before: Sequence[str], now: Sequence[str], say: Callable[[str], None]) -> None:
    """Names the first label that stands for another class than it was trained for."""
    for label, (old, new) in enumerate(zip_longest(before, now)):
        if old != new:
            say(f"changed since the commit: label {label} was the class {old} and is {new} now, maybe others, too")
            return


def history_from(commit: Committed, fresh: LossHistory | None, say: Callable[[str], None]) -> LossHistory | None:
    """The commit's losses by timestep, for a task that has them; `fresh`, said aloud, where it has none of these."""
    if fresh is None:
        return None
    held = commit.marker["task"] and LossHistory.from_json(commit.marker["task"])
    if held and len(held.counts) == len(fresh.counts):
        return held
    say(
        f"objective.timesteps=loss_aware: the commit has no losses of these {len(fresh.counts)} timesteps: they are "
        f"drawn uniformly until each was seen {WARM} times"
    )
    return fresh
