"""Bits per dimension of shards: one number however the images are batched and shared out, and refusals."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    ClassifierRecipe,
    DataOptions,
    DiffusionRecipe,
    NllDataOptions,
    NllRecipe,
    SuperResolutionRecipe,
    TrainRecipe,
)
from dist_diffusion.errors import ConfigError, NonFiniteError
from dist_diffusion.evaluation import nll
from dist_diffusion.evaluation.nll import Part, check_finite, measure, prepare, report
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions
from dist_diffusion.weights import files as weight_files

CPU = torch.device("cpu")
DATA = DataOptions(image_size=8)
SMALL = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "attention_resolutions": (4,)}


@pytest.fixture
def export(tmp_path: Path) -> str:
    return save(tmp_path, DiffusionRecipe(data=DATA, model=UNetOptions(**SMALL)))  # type: ignore[arg-type]


def save(folder: Path, recipe: TrainRecipe, num_classes: int = 2) -> str:
    """An export of a network that is no longer zero."""
    resolved = resolve(recipe, num_classes)
    torch.manual_seed(0)
    module = build(resolved.model)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    path = str(folder / f"{resolved.task}-{num_classes}.safetensors")
    weight_files.save(path, module.state_dict(), resolved, {"step": 7, "average": "ema_0"})
    return path


def nll_recipe(shard_folder: str, out: Path, **changes: object) -> NllRecipe:
    base = NllRecipe(
        model="m", out=str(out), data=NllDataOptions(shard_folder), num_samples=11, steps="6", batch_size=4
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def parts(recipe: NllRecipe, export: str, ranks: int = 1) -> list[Part]:
    shares = [measure(prepare(recipe, export, CPU), recipe, rank, ranks, print) for rank in range(ranks)]
    return sorted((part for share in shares for part in share), key=lambda part: part.number)


def totals(found: list[Part]) -> np.ndarray:
    return np.concatenate([part.total for part in found])


def test_batches_and_ranks_change_nothing(export: str, shard_folder: str, tmp_path: Path) -> None:
    recipe = nll_recipe(shard_folder, tmp_path)
    found = parts(recipe, export)
    assert [part.number for part in found] == [0, 1, 2] and len(totals(found)) == 11
    for ranks, batch_size in [(5, 4), (2, 3)]:
        other = parts(dataclasses.replace(recipe, batch_size=batch_size), export, ranks)
        np.testing.assert_allclose(totals(other), totals(found), rtol=1e-5)
        sums = sum(part.sums for part in other), sum(part.sums for part in found)
        np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-6)
    more = parts(dataclasses.replace(recipe, num_samples=13), export)
    np.testing.assert_allclose(totals(more)[:11], totals(found), rtol=1e-5)
    assert np.abs(totals(parts(dataclasses.replace(recipe, seed=1), export)) / totals(found) - 1).max() > 1e-4


def test_the_outputs_say_what_was_measured(
    export: str, shard_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = nll_recipe(shard_folder, tmp_path / "out")
    found = parts(recipe, export)
    report(prepare(recipe, export, CPU), recipe, found, print)
    result = json.loads((tmp_path / "out/nll.json").read_text())
    bits = totals(found)
    assert result["bits_per_dim"] == pytest.approx(bits.mean())
    assert result["standard_error"] == pytest.approx(bits.std(ddof=1) / math.sqrt(11))
    assert (result["num_samples"], result["num_steps"], result["step"], result["average"]) == (11, 6, 7, "ema_0")
    assert result["export"] == export and result["settings"]["data"]["shards"] == shard_folder
    with np.load(tmp_path / "out/terms.npz") as terms:
        assert all(terms[name].shape == (6,) for name in ("model_time", "vb", "x0_mse", "eps_mse"))
        assert terms["model_time"].tolist() == [999, 799, 599, 400, 200, 0]
        assert terms["vb"].sum() + result["prior_bits_per_dim"] == pytest.approx(result["bits_per_dim"], rel=1e-6)
        assert (terms["x0_mse"] > 0).all() and (terms["eps_mse"] > 0).all()
    assert f"{bits.mean():.4f} +- {result['standard_error']:.4f} bits per dimension" in capsys.readouterr().out


def test_the_model_is_told_each_images_label_and_sees_it_unflipped(
    export: str, shard_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = nll_recipe(shard_folder, tmp_path, clip_x0=False, steps="1")
    prepared, seen = prepare(recipe, export, CPU), []

    def spy(denoiser, levels, x0, noise, labels):  # type: ignore[no-untyped-def]
        seen.append((x0, labels))
        return bits(denoiser, levels, x0, noise, labels)

    bits = nll.bits_per_dimension
    monkeypatch.setattr(nll, "bits_per_dimension", spy)
    list(measure(prepared, recipe, 0, 1, print))
    images = np.concatenate(list(prepared.images.batches(11)))
    x0 = torch.cat([x0 for x0, _ in seen]).permute(0, 2, 3, 1)
    torch.testing.assert_close(x0, torch.from_numpy(images).float() / 127.5 - 1)
    assert prepared.images.labels is not None
    assert torch.cat([labels for _, labels in seen]).tolist() == prepared.images.labels.tolist()


def test_an_unconditional_model_may_have_any_shards(shard_folder: str, tmp_path: Path) -> None:
    model = UNetOptions(num_classes=0, **SMALL)  # type: ignore[arg-type]
    export = save(tmp_path, DiffusionRecipe(data=DATA, model=model), num_classes=9)
    assert np.isfinite(totals(parts(nll_recipe(shard_folder, tmp_path), export))).all()


def test_models_that_have_no_bits_are_refused(shard_folder: str, tmp_path: Path) -> None:
    recipe = nll_recipe(shard_folder, tmp_path)
    for other in (
        ClassifierRecipe(data=DATA, model=ClassifierOptions(num_head_channels=32, **SMALL)),  # type: ignore[arg-type]
        SuperResolutionRecipe(data=DATA, model=SuperResolutionOptions(low_res_size=4, **SMALL)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=rf"model=.* is of task {other.task}"):
            prepare(recipe, save(tmp_path, other), CPU)


def test_images_that_do_not_fit_are_refused(export: str, shard_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_samples=31, but data\.shards=.* holds 30"):
        prepare(nll_recipe(shard_folder, tmp_path, num_samples=31), export, CPU)
    other = save(tmp_path, DiffusionRecipe(data=DATA, model=UNetOptions(**SMALL)), num_classes=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"knows 3 classes, data\.shards=.* lists 2"):
        prepare(nll_recipe(shard_folder, tmp_path), other, CPU)
    with pytest.raises(ConfigError, match=r"steps=1001: section 1 has 1000 timesteps"):
        prepare(nll_recipe(shard_folder, tmp_path, steps="1001"), export, CPU)
    assert prepare(nll_recipe(shard_folder, tmp_path, num_samples=None), export, CPU).images.num_images == 30


def test_a_likelihood_that_is_not_finite_is_no_result() -> None:
    check_finite(torch.ones(2), [4, 5], "m.safetensors")
    with pytest.raises(NonFiniteError, match=r"images 5 under m\.safetensors"):
        check_finite(torch.tensor([1.0, torch.nan]), [4, 5], "m.safetensors")
