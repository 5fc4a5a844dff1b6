"""What a run is made of, brought to where it begins."""

import torch

from dist_diffusion import draws
from dist_diffusion.distributed import group as groups
from dist_diffusion.distributed.signals import StopFlag
from dist_diffusion.engine.engine import TrainingEngine
from dist_diffusion.errors import alike
from dist_diffusion.models.build import build as build_model
from dist_diffusion.runs import lease as leases
from dist_diffusion.tasks.build import build as build_task
from dist_diffusion.tasks.task import Task
from dist_diffusion.training.guards import make_mirror
from dist_diffusion.training.observer import Observer
from dist_diffusion.training.place import Place
from dist_diffusion.training.prepare import Prepared, make_loader
from dist_diffusion.training.rehearsal import Rehearsal, rehearse, within_memory
from dist_diffusion.training.start import Start, history_from
from dist_diffusion.training.state import Run
from dist_diffusion.training.validation import Validation


def assemble(
    prepared: Prepared,
    validation: Validation | None,
    place: Place,
    stop: StopFlag,
    lease: leases.Lease | None,
    start: Start,
) -> Run:
    """Task, network, engine and data, at the start's step."""
    recipe, group, console, step = prepared.recipe, place.group, place.console, start.step
    groups.set_deterministic(recipe.engine.deterministic)
    task = build_task(recipe, group.device)
    engine = make_engine(prepared, place, start)
    if validation is not None:
        images = validation.images
        console.say(f"commits are validated on {images.num_images} samples of {images.path}")
    bring_to_start(prepared, place, start, engine, task)
    kept = {} if start.commit is None else start.commit.marker["extra"]
    return Run(
        recipe=recipe,
        group=group,
        task=task,
        engine=engine,
        loader=make_loader(prepared, task.draws, place, step),
        checkpointer=start.checkpointer,
        observer=Observer(place.run_dir, recipe, group, console, step, kept, engine.clock),
        validation=validation,
        console=console,
        stop=stop,
        lease=lease,
        mirror=make_mirror(recipe, place, lease),
        where=place.where,
        epoch_images=prepared.order.steps_per_epoch * recipe.train.global_batch,
        data={"manifest": prepared.manifest.checksum, "classes": list(prepared.manifest.classes)},
        step=step,
        saved_step=-1 if start.commit is None else step,
        commits=kept.get("commits", 0),
    )


def make_engine(prepared: Prepared, place: Place, start: Start) -> TrainingEngine:
    """The engine of a fresh network, or of one with the weights of init_from."""
    recipe = prepared.recipe
    torch.manual_seed(draws.key(recipe.seed, "weights", 0))
    # One rank alone may lack memory: that is not told alike.
    with within_memory(place.group.device), alike():
        model = build_model(recipe.model, recipe.engine.recompute)
        if start.initial is not None:
            start.initial.fill(model, place.console.say)
        return TrainingEngine(model, recipe, place.group)


def bring_to_start(prepared: Prepared, place: Place, start: Start, engine: TrainingEngine, task: Task) -> None:
    """The state of the commit that the start goes on from; before step 0 the dry run, which leaves no trace."""
    recipe, console = prepared.recipe, place.console
    if start.commit is not None:
        start.checkpointer.restore(engine, start.commit.path, start.commit.marker)
        task.history = history_from(start.commit, task.history, console.say)
        console.say(f"resuming at step {start.step} from {start.commit.path}")
        return
    console.say("no committed checkpoint: starting at step 0")
    if recipe.train.dry_run:
        rehearse(Rehearsal(recipe, place, engine, task, start.checkpointer.of_folder(place.run_dir.dry_run)))
