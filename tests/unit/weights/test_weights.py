"""Exports carry their recipe; what a user names finds the right file, or an error says why not."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe
from dist_diffusion.errors import CheckpointError, ConfigError, StorageError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.runs.layout import step_name
from dist_diffusion.storage import committed
from dist_diffusion.weights import files
from dist_diffusion.weights.load import load_model
from dist_diffusion.weights.resolve import export_name, find

MODEL = UNetOptions(channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,))
RECIPE = resolve(DiffusionRecipe(data=DataOptions(image_size=8), model=MODEL), num_classes=3)


def commit(run: Path, step: int, averages: list[str], attempt: str) -> None:
    folder = committed.stage(str(run / "checkpoints"), step_name(step), attempt)
    for average in averages:
        files.save(f"{folder}/{export_name(average)}", {"x": torch.tensor([float(step)])}, RECIPE, {"step": step})
    names = [export_name(average) for average in averages]
    committed.mark(folder, committed.describe(folder, names), {"exports": averages})


def test_an_export_gives_module_and_recipe_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build(RECIPE.model)
    path = str(tmp_path / "m.safetensors")
    files.save(path, module.state_dict(), RECIPE, {"step": 5})
    loaded = load_model(path)
    assert loaded.recipe == RECIPE
    assert loaded.info == {"step": 5}
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), module.parameters(), strict=True))
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_run_and_step_and_average_name_a_file(tmp_path: Path) -> None:
    attempt = committed.new_attempt()
    commit(tmp_path, 5, ["ema_0", "weights"], attempt)
    commit(tmp_path, 10, ["ema_0", "weights"], attempt)
    run = str(tmp_path)
    assert find(run, None).endswith(f"{step_name(10)}.{attempt}/{export_name('ema_0')}")
    assert find(f"{run}@5", "weights").endswith(f"{step_name(5)}.{attempt}/{export_name('weights')}")
    with pytest.raises(CheckpointError, match="no committed checkpoint of step 6"):
        find(f"{run}@6", None)
    with pytest.raises(ConfigError, match="chooses among a run's exports"):
        find(find(run, None), "ema_0")
    with pytest.raises(CheckpointError, match="has no export ema_7; it has ema_0, weights"):
        find(run, "ema_7")
    with pytest.raises(CheckpointError, match="no such run or export"):
        find(str(tmp_path / "gone"), None)


def test_a_damaged_export_of_a_run_is_named(tmp_path: Path) -> None:
    commit(tmp_path, 5, ["ema_0"], committed.new_attempt())
    damaged = Path(find(str(tmp_path), None))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(StorageError, match=r"export-ema_0\.safetensors is damaged"):
        find(str(tmp_path), None)


def test_exports_are_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    files.save(str(path), {"x": torch.zeros(1)}, RECIPE, {})
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_a_state_dict_in_place_of_an_export_is_to_be_imported_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a model.pt"
    if kind == "safetensors":
        save_file({"x": torch.zeros(1)}, path, metadata={"format": "pt"})
    else:
        torch.save({"x": torch.zeros(1)}, path, _use_new_zipfile_serialization=kind == "zip")
    tool = r"python tools/import_guided_diffusion\.py '\S*/a model\.pt' --preset NAME OUT\.safetensors$"
    with pytest.raises(CheckpointError, match=f"import it first: {tool}"):
        load_model(str(path))


def test_foreign_and_misshapen_files_are_refused(tmp_path: Path) -> None:
    foreign, pickle = str(tmp_path / "f.safetensors"), tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(1)}, foreign, metadata={"format": "2", "recipe": "{}"})
    pickle.write_bytes(b"no safetensors")
    with pytest.raises(CheckpointError, match="no export of this version"):
        files.load(foreign)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        files.load(str(pickle))
    with pytest.raises(StorageError, match="no such export"):
        files.load(str(tmp_path / "none.safetensors"))
    other = dataclasses.replace(RECIPE, model=dataclasses.replace(RECIPE.model, channels=64))
    path = str(tmp_path / "m.safetensors")
    files.save(path, build(RECIPE.model).state_dict(), other, {})
    with pytest.raises(CheckpointError, match="not those of its own recipe"):
        load_model(path)
