"""`dist-diffusion nll` on two ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import Launcher

from dist_diffusion.config.load import load, load_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import NllRecipe
from dist_diffusion.evaluation.nll import measure, prepare
from dist_diffusion.models.build import build
from dist_diffusion.weights import files as weight_files


@pytest.fixture(scope="module")
def model(workplace: Path) -> Path:
    """An export of the tiny diffusion recipe."""
    recipe = resolve(load_train(str(workplace / "diffusion.yaml"), []), num_classes=3)
    torch.manual_seed(0)
    weight_files.save(str(workplace / "tiny.safetensors"), build(recipe.model).state_dict(), recipe, {"step": 0})
    (workplace / "nll.yaml").write_text('num_samples: 22\nsteps: "5"\nbatch_size: 4\n')
    return workplace / "tiny.safetensors"


def test_two_ranks_measure_what_one_process_does(model: Path, workplace: Path, launcher: Launcher) -> None:
    given = [f"model={model}", f"data.shards={workplace / 'shards'}", f"out={workplace / 'nll'}"]
    said, _ = launcher.run(2, "nll", str(workplace / "nll.yaml"), *given)
    result = json.loads((workplace / "nll/nll.json").read_text())
    assert f"{result['bits_per_dim']:.4f} +- {result['standard_error']:.4f} bits per dimension" in said
    assert said.count("22 images") == 1

    recipe = load(NllRecipe, str(workplace / "nll.yaml"), given)
    measurement = prepare(recipe, str(model), torch.device("cpu"))
    parts = list(measure(measurement, recipe, 0, 1, print))
    assert result["bits_per_dim"] == pytest.approx(np.concatenate([part.total for part in parts]).mean(), rel=1e-6)
    with np.load(workplace / "nll/terms.npz") as terms:
        vb, *_ = np.sum([part.sums for part in parts], axis=0) / 22
        np.testing.assert_allclose(terms["vb"], vb, rtol=1e-5)
