"""Validation: each held-out sample meets one noise level and one noise, whoever measures it and how."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dist_diffusion.config.checks import check_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    CheckpointOptions,
    ClassifierRecipe,
    DataOptions,
    DiffusionRecipe,
    SuperResolutionRecipe,
    TrainOptions,
    TrainRecipe,
    ValidationOptions,
)
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.distributed.group import Group
from dist_diffusion.distributed.whereabouts import Whereabouts
from dist_diffusion.draws import Uniform
from dist_diffusion.engine.clock import ForwardClock
from dist_diffusion.engine.engine import StepResult
from dist_diffusion.errors import ConfigError, DataError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions
from dist_diffusion.observe.console import Console
from dist_diffusion.runs.layout import RunDir
from dist_diffusion.tasks.task import Mean, added, by_quartile
from dist_diffusion.training.looks import catch_up, put_off, show_validation
from dist_diffusion.training.observer import Observer
from dist_diffusion.training.validation import Validation, make_validation, measure, validate, validation_task
from dist_diffusion.weights import files as weight_files

CPU = torch.device("cpu")
CLASSES = ("dark", "grey", "light")
DATA = DataOptions(image_size=8)
SMALL: dict[str, Any] = {
    "channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (4,),
    "num_head_channels": 32,
}
DIFFUSION = DiffusionRecipe(
    data=DATA, model=UNetOptions(**SMALL), objective=ObjectiveOptions(p_uncond=0.5, timesteps="loss_aware")
)
CLASSIFIER = ClassifierRecipe(data=DATA, model=ClassifierOptions(**SMALL))
SUPER_RESOLUTION = SuperResolutionRecipe(data=DATA, model=SuperResolutionOptions(**SMALL, low_res_size=4))
RECIPES = [DIFFUSION, CLASSIFIER, SUPER_RESOLUTION]


def resolved(recipe: TrainRecipe, shards: Path, **options: Any) -> TrainRecipe:
    validation = ValidationOptions(shards=str(shards), **options)
    return resolve(dataclasses.replace(recipe, validation=validation), len(CLASSES))


def made(recipe: TrainRecipe, group: Group) -> Validation:
    validation = make_validation(recipe, CLASSES, group)
    assert validation is not None
    return validation


def network(recipe: TrainRecipe) -> nn.Module:
    """One that says something."""
    torch.manual_seed(0)
    module = build(recipe.model)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval()


def values(recipe: TrainRecipe, group: Group, ranks: int = 1) -> dict[str, float | None]:
    validation, module = made(recipe, group), network(recipe)
    log = added([measure(validation, module, rank, ranks) for rank in range(ranks)])
    return {name: mean.value for name, mean in log.items()}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.task)
def test_neither_batches_nor_ranks_change_the_numbers(recipe: TrainRecipe, shard_folder: Path, group: Group) -> None:
    whole = values(resolved(recipe, shard_folder, batch_size=64), group)
    quarters = "accuracy" if recipe is CLASSIFIER else "loss"
    assert None not in [whole["loss"], *(whole[f"{quarters}_q{i}"] for i in (1, 2, 3, 4))]
    for ranks, size in ((1, 7), (2, 5), (3, 4)):
        split = values(resolved(recipe, shard_folder, batch_size=size), group, ranks)
        assert split == pytest.approx(whole, rel=1e-6)


def test_every_seed_and_training_setting_meets_the_same_noise(shard_folder: Path, group: Group) -> None:
    """What the network is given for the first rows: of another run, another share, another number of samples."""

    def given(recipe: TrainRecipe, rank: int = 0, ranks: int = 1, **options: Any) -> dict[int, torch.Tensor]:
        seen: list[torch.Tensor] = []

        def forward(x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            assert labels is not None
            seen.append(torch.cat([x.flatten(1), time[:, None], labels[:, None]], dim=1))
            return torch.zeros(len(x), 6, 8, 8)

        size = options.get("batch_size", 64)
        measure(made(resolved(recipe, shard_folder, **options), group), forward, rank, ranks)
        return {(rank + i * ranks) * size + j: row for i, part in enumerate(seen) for j, row in enumerate(part)}

    first = given(DIFFUSION)
    assert sorted(first) == list(range(24))
    # No label is dropped, and no two rows share their noise.
    assert {int(row[-1]) for row in first.values()} == {0, 1, 2}
    assert len({float(row[-2]) for row in first.values()}) > 20
    other = dataclasses.replace(DIFFUSION, seed=7, objective=ObjectiveOptions(timesteps="stratified"))
    for found in (given(other, num_samples=10), given(DIFFUSION, rank=1, ranks=2, batch_size=5, num_samples=None)):
        assert found and all(torch.equal(row, first[i]) for i, row in found.items())
    assert sorted(found) == [*range(5, 10), *range(15, 20)]


@pytest.mark.parametrize(
    ("given", "used"),
    [("uniform", "uniform"), ("stratified", "uniform"), ("loss_aware", "uniform"), ("log_normal", "log_normal")],
)
def test_levels_are_drawn_for_themselves(given: Any, used: str) -> None:
    schedule: Any = "log_snr" if given == "log_normal" else "cosine"
    diffusion = DiffusionOptions(schedule=schedule, variance="fixed_small")
    objective = ObjectiveOptions(loss="simple", timesteps=given)
    recipe = DiffusionRecipe(data=DATA, diffusion=diffusion, objective=objective)
    task: Any = validation_task(resolve(recipe, 3), CPU)
    assert task.objective.timesteps == used
    assert task.draws[0] == Uniform("timestep") and task.history is None


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (("dark", "gray", "light"), "label 1 is the class grey, in data.shards the class gray"),
        (("dark", "light", "grey"), "label 1 is the class grey, in data.shards the class light"),
        (("dark", "grey"), r"label 2 is the class light, in data.shards the class \(none\)"),
        ((*CLASSES, "white"), r"label 3 is the class \(none\), in data.shards the class white"),
    ],
)
def test_labels_must_mean_the_same_classes(
    trained: tuple[str, ...], message: str, shard_folder: Path, group: Group
) -> None:
    for recipe in (DIFFUSION, CLASSIFIER):
        with pytest.raises(ConfigError, match=rf"validation\.shards={shard_folder}: {message}") as caught:
            make_validation(resolved(recipe, shard_folder), trained, group)
        assert caught.value.agreed
    unconditional = dataclasses.replace(
        DIFFUSION, model=UNetOptions(**SMALL, num_classes=0), objective=ObjectiveOptions()
    )
    assert make_validation(resolved(unconditional, shard_folder), trained, group) is not None


@pytest.mark.parametrize("key", ["num_samples", "every_commits", "batch_size"])
def test_numbers_are_one_or_more(key: str) -> None:
    recipe = dataclasses.replace(CLASSIFIER, run_dir="r", data=dataclasses.replace(DATA, shards="s"))
    check_train(recipe, world_size=1)
    with pytest.raises(ConfigError, match=rf"validation\.{key}=0: expected 1 or more"):
        check_train(dataclasses.replace(recipe, validation=ValidationOptions(**{key: 0})), world_size=1)  # type: ignore[arg-type]


def test_shards_that_are_not_there_are_refused(tmp_path: Path, group: Group) -> None:
    assert make_validation(resolve(CLASSIFIER, 3), CLASSES, group) is None
    with pytest.raises(DataError, match="nowhere does not exist"):
        make_validation(resolved(CLASSIFIER, tmp_path / "nowhere"), CLASSES, group)


@pytest.fixture
def run(tmp_path: Path, shard_folder: Path, group: Group) -> Callable[..., SimpleNamespace]:
    """What of a run a validation needs: at step 8 with its second commit, whose export is in tmp_path."""

    def make(shards: Path = shard_folder, every_commits: int = 1) -> SimpleNamespace:
        recipe = dataclasses.replace(
            resolved(CLASSIFIER, shards, every_commits=every_commits),
            train=TrainOptions(steps=100, global_batch=24),
            checkpoint=CheckpointOptions(every=4),
        )
        module = network(recipe)
        weight_files.save(str(tmp_path / "export-weights.safetensors"), module.state_dict(), recipe, {})
        console = Console(str(tmp_path / "log"), 0)
        return SimpleNamespace(
            recipe=recipe,
            group=group,
            validation=make_validation(recipe, CLASSES, group),
            checkpointer=SimpleNamespace(exports=("weights",)),
            observer=Observer(RunDir(str(tmp_path)), recipe, group, console, 8, {}, ForwardClock(group.device)),
            console=console,
            step=8,
            where=Whereabouts(),
            commits=2,
        )

    return make


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_commits_row(run: Callable[..., Any], tmp_path: Path, group: Group) -> None:
    at_8 = run()
    show_validation(at_8, 8, str(tmp_path))
    (row,) = rows(tmp_path / "validation.jsonl")
    assert {key: row.pop(key) for key in ("step", "images", "export", "num_samples")} == {
        "step": 8,
        "images": 192,
        "export": "weights",
        "num_samples": 24,
    }
    assert row == validate(at_8.validation, str(tmp_path / "export-weights.safetensors"), group)
    assert row["loss"] == pytest.approx(values(at_8.recipe, group)["loss"], rel=1e-6)
    at_8.observer.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in shown.Scalars("validation/loss")] == [(8, pytest.approx(row["loss"]))]
    assert f"validation of step 8 (weights, 24 samples): loss {row['loss']:.4f}  accuracy" in log_of(tmp_path)


def log_of(folder: Path) -> str:
    return (folder / "log").read_text()


def test_a_commit_that_is_not_due_has_no_row(run: Callable[..., Any], tmp_path: Path) -> None:
    show_validation(run(every_commits=3), 8, str(tmp_path))
    assert not (tmp_path / "validation.jsonl").exists()
    show_validation(run(every_commits=2), 8, str(tmp_path))
    show_validation(run(every_commits=3), 100, str(tmp_path))
    assert [row["step"] for row in rows(tmp_path / "validation.jsonl")] == [8, 100]


def test_a_stopping_run_says_what_it_leaves_out(run: Callable[..., Any], tmp_path: Path) -> None:
    put_off(run(every_commits=3), 8)
    assert not (tmp_path / "log").exists()
    put_off(run(every_commits=2), 8)
    assert "stopping: no validation of step 8 now" in log_of(tmp_path)


def test_a_resume_makes_up_for_a_row_that_a_kill_lost_and_sets_later_ones_aside(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (4, 12)))
    resumed = run()
    assert [row["step"] for row in rows(tmp_path / "validation.stale.jsonl")] == [12]
    for _ in range(2):
        catch_up(resumed, str(tmp_path))
        assert [row["step"] for row in rows(path)] == [4, 8]
    assert log_of(tmp_path).count("step 8 was committed, but not validated") == 1
    path.unlink()
    catch_up(run(every_commits=3), str(tmp_path))
    assert not path.exists()


def test_a_damaged_sample_is_named_and_ends_nothing(
    run: Callable[..., Any], shard_folder: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    for path in shard_folder.iterdir():
        (spoilt / path.name).write_bytes(path.read_bytes())
    tar = sorted(spoilt.glob("*.tar"))[1]
    content = bytearray(tar.read_bytes())
    content[content.index(b"PNG") + 20] ^= 1
    tar.write_bytes(content)
    show_validation(run(spoilt), 8, str(tmp_path))
    assert f"no validation of step 8: sample 0 of shard {tar}" in log_of(tmp_path)
    show_validation(run(), 8, str(tmp_path / "gone"))
    assert f"no validation of step 8: {tmp_path}/gone/export-weights.safetensors" in log_of(tmp_path)
    assert not (tmp_path / "validation.jsonl").exists()


def test_a_quarter_without_samples_is_null_and_not_in_tensorboard(run: Callable[..., Any], tmp_path: Path) -> None:
    observer = run().observer
    accuracy = torch.tensor([1.0, 0.0, 1.0])
    log = {"accuracy": Mean.of(accuracy), **by_quartile("accuracy", accuracy, torch.tensor([0, 0, 3]))}
    with observer.waiting_for_data():
        pass
    observer.record(100, 17, StepResult(torch.tensor(0.5), 1.0, True, 1e-4, None), log)
    observer.close()
    (row,) = rows(tmp_path / "metrics.jsonl")
    assert [row[f"accuracy_q{i}"] for i in (1, 2, 3, 4)] == [0.5, None, None, 1.0]
    assert (row["loss"], row["batch_digest"]) == (0.5, f"{17:016x}") and math.isclose(row["accuracy"], 2 / 3)
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"]
    assert {"accuracy_q1", "accuracy_q4", "loss"} <= set(tags) and not {"accuracy_q2", "accuracy_q3"} & set(tags)
