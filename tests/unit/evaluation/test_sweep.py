"""A sweep of tiny networks: its numbers and costs, what it takes up again, and what it refuses to mix."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    ClassifierRecipe,
    DataOptions,
    DiffusionRecipe,
    EvaluateRecipe,
    SweepRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, ObjectiveOptions, SamplerOptions
from dist_diffusion.distributed.group import set_deterministic
from dist_diffusion.errors import ConfigError, DataError, StorageError
from dist_diffusion.evaluation import evaluator, report, run
from dist_diffusion.evaluation.sweep import run_sweep
from dist_diffusion.evaluation.sweep_table import Row
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, UNetOptions
from dist_diffusion.observe.console import Console
from dist_diffusion.sampling.run import run_job
from dist_diffusion.weights import files as weight_files

DATA, PROCESS = DataOptions(image_size=8), DiffusionOptions(num_timesteps=100)
SMALL = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1,), "attention_resolutions": ()}
MODEL = DiffusionRecipe(
    data=DATA,
    diffusion=PROCESS,
    model=UNetOptions(**SMALL),
    objective=ObjectiveOptions(p_uncond=0.1),  # type: ignore[arg-type]
)
CLASSIFIER = ClassifierRecipe(
    data=DATA,
    diffusion=PROCESS,
    model=ClassifierOptions(num_head_channels=32, **SMALL),  # type: ignore[arg-type]
)
NAMES = ["none", "cfg-2", "cfg-3", "classifier-1", "both-2-1"]

Sweep = Callable[[SweepRecipe], list[Row]]


def save(path: Path, recipe: TrainRecipe, seed: int = 0) -> str:
    """An export of a network that is no longer zero."""
    resolved = resolve(recipe, num_classes=2)
    torch.manual_seed(seed)
    module = build(resolved.model)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    info = {"step": 7, "average": "ema_0", "classes": ["ant", "bee"]}
    weight_files.save(str(path), module.state_dict(), resolved, info)
    return str(path)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save(folder / "model.safetensors", MODEL)
    save(folder / "other.safetensors", MODEL, seed=1)
    save(folder / "classifier.safetensors", CLASSIFIER)
    save(folder / "judge.safetensors", CLASSIFIER, seed=2)
    larger = dataclasses.replace(CLASSIFIER, data=DataOptions(image_size=16))
    save(folder / "larger.safetensors", larger)
    return folder


@pytest.fixture
def recipe(models: Path, shard_folder: str, tmp_path: Path) -> SweepRecipe:
    return SweepRecipe(
        model=str(models / "model.safetensors"),
        out=str(tmp_path / "out"),
        reference=shard_folder,
        judge=str(models / "judge.safetensors"),
        cfg_scales=(2.0, 3.0),
        classifier_scales=(1.0,),
        both=((2.0, 1.0),),
        num_samples=10,
        batch_size=4,
        shard_size=8,
        grid_images=3,
        sampler=SamplerOptions(name="ddim", steps="3"),
        guidance=GuidanceOptions(classifier=str(models / "classifier.safetensors")),
    )


@pytest.fixture
def sweep(group, network, monkeypatch) -> Sweep:
    monkeypatch.setattr(evaluator, "efficientnet_lite0", lambda: network)
    monkeypatch.setattr(report, "efficientnet_lite0", lambda: network)
    return lambda recipe: run_sweep(recipe, group, 1, Console(None, 0))


def table(recipe: SweepRecipe) -> list[dict]:
    return json.loads(Path(recipe.out or "", "table.json").read_text())


def images(recipe: SweepRecipe, name: str) -> np.ndarray:
    return np.load(Path(recipe.out or "", "points", name, f"samples_{recipe.num_samples}x8x8x3.npz"))["arr_0"]


def numbers(rows: list[dict]) -> list[dict]:
    """Without what is timed."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


def test_the_table_has_the_numbers_and_the_cost_of_each_point(sweep: Sweep, recipe: SweepRecipe, tmp_path) -> None:
    sweep(recipe)
    rows = table(recipe)
    assert [(row["guidance"], row["cfg_scale"], row["classifier_scale"]) for row in rows] == [
        ("none", None, None),
        ("cfg", 2.0, None),
        ("cfg", 3.0, None),
        ("classifier", None, 1.0),
        ("both", 2.0, 1.0),
    ]
    evaluations = [(row["network_evaluations"], row["classifier_evaluations"]) for row in rows]
    assert evaluations == [(3, 0), (6, 0), (6, 0), (3, 3), (6, 3)]
    assert all(row["seconds"] > 0 for row in rows)
    assert all(row["images_per_second"] == pytest.approx(12 / row["seconds"]) for row in rows)
    # The numbers are those of `evaluate` on the point's job.
    job = str(tmp_path / "out/points/both-2-1")
    alone = EvaluateRecipe(samples=job, reference=recipe.reference, judge=recipe.judge, out=str(tmp_path / "alone"))
    expected = report.evaluate(alone, lambda _: None)
    for key in ("fd", "kid", "score", "precision", "recall", "label_agreement", "judge_score"):
        assert rows[-1][key] == pytest.approx(expected[key], rel=1e-6)
    assert len({images(recipe, name).tobytes() for name in NAMES}) == 5


def test_the_page_says_what_was_swept(sweep: Sweep, recipe: SweepRecipe) -> None:
    sweep(dataclasses.replace(recipe, modes=("none", "cfg"), cfg_scales=(2.0,)))
    page = Path(recipe.out or "", "report.html").read_text()
    for text in (
        recipe.model,
        "ema_0 of step 7",
        "8 px, 2 classes",
        "ddim, steps 3, spacing even",
        "10 a point, seed 0",
        "FD-tiny@10",
    ):
        assert str(text) in page
    assert page.count("data:image/png") == 2 and "30 images" in page
    assert "FD-tiny@10" in Path(recipe.out or "", "table.md").read_text()
    assert Path(recipe.out or "", "sweep.svg").read_text().startswith("<svg")


def test_killed_it_goes_on_with_what_is_missing(
    sweep: Sweep, recipe: SweepRecipe, tmp_path: Path, monkeypatch, capsys
) -> None:
    recipe = dataclasses.replace(recipe, modes=("none", "cfg"))
    whole = dataclasses.replace(recipe, out=str(tmp_path / "whole"))
    sweep(whole)

    def killed_in_the_third(point, *rest):
        if point.out.endswith("cfg-3"):
            # In the middle of its job: one shard is there.
            run_job(dataclasses.replace(point, num_samples=8), *rest)
            raise StorageError("killed")
        return run_job(point, *rest)

    monkeypatch.setattr(run, "run_job", killed_in_the_third)
    with pytest.raises(StorageError, match="killed"):
        sweep(recipe)
    assert [row["guidance"] for row in table(recipe)] == ["none", "cfg"]
    made = sorted(Path(recipe.out or "").glob("points/*/shards/*.npz"))
    times = [path.stat().st_mtime_ns for path in made]
    assert len(made) == 5

    monkeypatch.setattr(run, "run_job", run_job)
    capsys.readouterr()
    sweep(recipe)
    said = capsys.readouterr().out
    assert "[2/3] cfg-2: done before" in said and "[3/3] cfg-3\n" in said
    assert [path.stat().st_mtime_ns for path in made] == times, "a finished shard was made again"
    assert numbers(table(recipe)) == numbers(table(whole))
    assert all(np.array_equal(images(recipe, name), images(whole, name)) for name in NAMES[:3])


def test_other_points_and_more_images_are_added(sweep: Sweep, recipe: SweepRecipe, capsys) -> None:
    small = dataclasses.replace(recipe, modes=("none",))
    sweep(small)
    before = images(small, "none")
    capsys.readouterr()
    grown = dataclasses.replace(recipe, modes=("classifier", "none"), num_samples=13)
    sweep(grown)
    said = capsys.readouterr().out
    assert "none will be evaluated again (num_samples: 10 -> 13)" in said
    assert [row["guidance"] for row in table(grown)] == ["classifier", "none"]
    assert np.array_equal(images(grown, "none")[:10], before)
    # A smaller table than the folder holds is a table all the same, of its own number.
    sweep(small)
    assert "(num_samples: 13 -> 10)" in capsys.readouterr().out
    assert len(table(small)) == 1


def test_numbers_of_another_judge_or_reference_are_made_anew(
    sweep: Sweep, recipe: SweepRecipe, models: Path, capsys
) -> None:
    recipe = dataclasses.replace(recipe, modes=("none",))
    (first,) = sweep(recipe)
    without = dataclasses.replace(recipe, judge=None)
    (second,) = sweep(without)
    assert first.label_agreement is not None and second.label_agreement is None
    assert second == dataclasses.replace(first, label_agreement=None, judge_score=None), "the images were made again"
    capsys.readouterr()
    (third,) = sweep(dataclasses.replace(without, num_reference=20))
    assert "num_reference: 30 -> 20" in capsys.readouterr().out
    assert third.fd != second.fd


def test_a_reference_is_read_as_sampling_needs_its_device(
    sweep: Sweep, recipe: SweepRecipe, network, monkeypatch
) -> None:
    """Where it has changed it is read before any point is sampled, and cuBLAS looks for its workspace once."""
    recipe = dataclasses.replace(recipe, modes=("none",))
    sweep(recipe)
    set_deterministic(False)
    before, seen = network.features_and_logits, []

    def looking(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return before(images)

    monkeypatch.setattr(network, "features_and_logits", looking)
    sweep(dataclasses.replace(recipe, num_reference=20))
    assert seen and all(seen)


def test_points_share_the_copies_of_the_models(sweep: Sweep, recipe: SweepRecipe) -> None:
    sweep(dataclasses.replace(recipe, modes=("none", "classifier")))
    out = Path(recipe.out or "")
    for name, roles in (("none", ["model"]), ("classifier-1", ["classifier", "model"])):
        copies = sorted((out / "points" / name).glob("*.safetensors"))
        assert [copy.stem for copy in copies] == roles
        assert all(copy.samefile(out / "exports" / copy.name) for copy in copies)
    # A point's job checks them as any job does.
    (out / "points/none/model.safetensors").unlink()
    (out / "points/none/model.safetensors").write_bytes(b"damaged")
    (out / "points/none/metrics.json").unlink()
    with pytest.raises(StorageError, match=r"points/none/model\.safetensors is missing or damaged"):
        sweep(dataclasses.replace(recipe, modes=("none",)))
    assert (out / "exports/model.safetensors").read_bytes() != b"damaged"


def test_what_would_mix_is_refused(sweep: Sweep, recipe: SweepRecipe, models: Path) -> None:
    recipe = dataclasses.replace(recipe, modes=("none", "cfg"), cfg_scales=(2.0,))
    sweep(recipe)
    before = sorted(Path(recipe.out or "").rglob("*"))
    other = str(models / "other.safetensors")
    refused = [
        ({"seed": 1}, r"points/none holds a job with other settings \(seed: 0 -> 1\)"),
        ({"sampler": SamplerOptions(name="ddim", steps="4")}, r"sampler\.steps: 3 -> 4"),
        ({"model": other}, r"holds a job of model .*model\.safetensors, not .*other\.safetensors"),
        ({"ema": "ema_1"}, "was begun with ema=None, not ema_1"),
    ]
    for change, message in refused:
        with pytest.raises(ConfigError, match=message):
            sweep(dataclasses.replace(recipe, cfg_scales=(2.0, 4.0), **change))
    assert sorted(Path(recipe.out or "").rglob("*")) == before


def test_a_run_that_is_trained_on_does_not_change_the_sweep(
    sweep: Sweep, recipe: SweepRecipe, models: Path, tmp_path: Path
) -> None:
    """New points use the model of the first ones, even where the given one is gone."""
    given = tmp_path / "moving.safetensors"
    given.write_bytes((models / "model.safetensors").read_bytes())
    recipe = dataclasses.replace(recipe, model=str(given), modes=("none",))
    sweep(recipe)
    given.unlink()
    more = dataclasses.replace(recipe, modes=("none", "cfg"))
    sweep(more)
    whole = dataclasses.replace(
        more, model=str(models / "model.safetensors"), out=str(tmp_path / "whole"), modes=("cfg",)
    )
    sweep(whole)
    assert np.array_equal(images(more, "cfg-3"), images(whole, "cfg-3"))


def test_a_first_start_that_cannot_end_well_leaves_nothing(sweep: Sweep, recipe: SweepRecipe, models: Path) -> None:
    larger = str(models / "larger.safetensors")
    refused: list[tuple[dict, type, str]] = [
        ({"reference": "nowhere.npz"}, DataError, r"nowhere\.npz does not exist"),
        ({"judge": larger}, ConfigError, "judge=.* is a classifier of 16 px and 2 classes, the model makes 8 px of 2"),
        ({"judge": recipe.model}, ConfigError, "is a model of task diffusion, not a classifier"),
        ({"guidance": GuidanceOptions(classifier=larger)}, ConfigError, "has image size 16, the model has 8"),
        ({"sampler": SamplerOptions(name="ddim", steps="ddim101")}, ConfigError, "ddim101"),
    ]
    for change, kind, message in refused:
        with pytest.raises(kind, match=message):
            sweep(dataclasses.replace(recipe, **change))
        assert not Path(recipe.out or "").exists()


def test_points_without_labels_are_not_judged(sweep: Sweep, recipe: SweepRecipe, tmp_path: Path, capsys) -> None:
    """An unconditional model has labels where a classifier guides it."""
    model = dataclasses.replace(MODEL, model=UNetOptions(num_classes=0, **SMALL), objective=ObjectiveOptions())  # type: ignore[arg-type]
    export = save(tmp_path / "unconditional.safetensors", model)
    sweep(dataclasses.replace(recipe, model=export, modes=("none", "classifier")))
    assert ["label_agreement" in row for row in table(recipe)] == [False, True]
    assert "none has no labels: no label agreement" in capsys.readouterr().out
