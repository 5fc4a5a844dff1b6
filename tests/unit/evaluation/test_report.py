import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_diffusion.config.schema import EvaluateRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.evaluation import judge as judges
from dist_diffusion.evaluation import reference, report
from dist_diffusion.evaluation.images import open_images
from dist_diffusion.evaluation.judge import Judge

KEYS = {"fd", "fd_name", "kid", "score", "score_std", "precision", "recall", "num_samples", "num_reference"}
KEYS |= {"network", "warnings", "samples", "reference"}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def tiny(monkeypatch, network):
    monkeypatch.setattr(report, "efficientnet_lite0", lambda: network)
    return network


def test_two_npz_through_the_real_network(tmp_path, write_npz, said):
    a, b, out = write_npz("a.npz", 40, seed=1), write_npz("b.npz", 30, seed=2), tmp_path / "out"
    report.evaluate(EvaluateRecipe(samples=a, reference=b, out=str(out)), said.append)
    result = json.loads((out / "metrics.json").read_text())
    assert set(result) == KEYS
    assert (result["samples"], result["reference"], result["num_samples"], result["num_reference"]) == (a, b, 40, 30)
    assert (result["fd_name"], result["network"]) == ("FD-lite0", "efficientnet-lite0-64px")
    assert result["fd"] > 1 and result["score"] > 1
    (warning,) = result["warnings"]
    assert "biased" in warning and "with 30 images" in warning and "1280" in warning
    text = "\n".join(said)
    assert warning in text and "FD-lite0" in text and "not comparable with published FID" in text
    assert "FID" not in text.replace("not comparable with published FID", "") and "FID" not in json.dumps(result)


def test_a_set_and_itself(tmp_path, write_npz, said, tiny):
    path = write_npz("a.npz", 40)
    result = report.evaluate(EvaluateRecipe(samples=path, reference=path, out=str(tmp_path / "out")), said.append)
    assert result["fd"] == pytest.approx(0, abs=1e-6)
    assert (result["precision"], result["recall"]) == (1, 1)


def test_saved_statistics_give_the_same_numbers_on_either_side(tmp_path, write_npz, said, tiny):
    out = str(tmp_path / "out")
    paths = {"samples": write_npz("a.npz", 40, seed=1), "reference": write_npz("b.npz", 30, seed=2)}
    saved = {key: str(tmp_path / f"{key}-statistics.npz") for key in paths}
    for key, path in paths.items():
        reference.save(reference.compute(open_images(path), tiny, batch_size=64), saved[key])
    expected = report.evaluate(EvaluateRecipe(**paths, out=out), said.append)
    for given in ({**paths, "reference": saved["reference"]}, saved):
        assert report.evaluate(EvaluateRecipe(**given, out=out), said.append) == expected | given
    assert any("statistics of 30 images" in line and paths["reference"] in line for line in said)


def test_shards_are_read_at_the_size_of_the_samples(tmp_path, write_npz, shard_folder, said, tiny):
    recipe = EvaluateRecipe(samples=write_npz("a.npz", 20), reference=shard_folder, out=str(tmp_path), num_reference=20)
    result = report.evaluate(recipe, said.append)
    assert result["num_reference"] == 20
    made = reference.compute(open_images(shard_folder, 16, 20), tiny, 64)
    expected = report.compare(reference.compute(open_images(recipe.samples), tiny, 64), made, tiny, seed=0)
    assert expected.items() <= result.items()


def test_what_a_reader_has_to_know_is_a_warning(tmp_path, write_npz, shard_folder, said, tiny):
    recipe = EvaluateRecipe(
        samples=write_npz("a.npz", 20), reference=shard_folder, out=str(tmp_path), image_size=8, num_reference=10_000
    )
    _, sizes, number = report.evaluate(recipe, said.append)["warnings"]
    assert "samples are 16 px, the reference 8 px" in sizes
    assert "num_reference=10000" in number and "is 30 images" in number
    assert f"warning: {sizes}" in said and f"warning: {number}" in said


def test_large_sets_are_not_warned_of(network):
    shape = (report.UNBIASED_ENOUGH, 1)
    large = reference.Statistics("tiny", "a", "", 16, 1.0, 0.0, *(np.zeros(1),) * 2, np.zeros(shape), np.zeros(shape))
    assert report.warnings(large, large, network, None) == []


def test_label_agreement_of_a_judge(tmp_path, write_npz, said, tiny, monkeypatch):
    class AlwaysTwo(torch.nn.Linear):
        def forward(self, x, model_time):
            return torch.eye(4)[2].repeat(len(x), 1)

    judge = Judge("runs/judge", AlwaysTwo(1, 1), image_size=16, num_classes=4)
    monkeypatch.setattr(judges, "load", lambda path: judge)
    path = write_npz("a.npz", 20, labels=np.arange(20) % 4)
    recipe = EvaluateRecipe(samples=path, reference=path, out=str(tmp_path), judge="runs/judge")
    assert report.evaluate(recipe, said.append)["label_agreement"] == 0.25
    assert any(line.split() == ["label", "agreement", "0.250", "higher", "is", "better"] for line in said)
    assert json.loads((tmp_path / "metrics.json").read_text())["label_agreement"] == 0.25


@pytest.mark.parametrize("missing", ["samples", "reference", "out"])
def test_a_missing_key_is_named(tmp_path, missing, said):
    keys = {"samples": "a.npz", "reference": "b.npz", "out": str(tmp_path / "out")}
    del keys[missing]
    with pytest.raises(ConfigError, match=f"{missing} is not set: give {missing}="):
        report.evaluate(EvaluateRecipe(**keys), said.append)


def test_errors_of_the_judge_come_before_the_networks_run(tmp_path, write_npz, said, tiny, monkeypatch):
    path, out = write_npz("a.npz", 20), tmp_path / "out"
    monkeypatch.setattr(judges, "load", lambda path: Judge(path, torch.nn.Identity(), image_size=16, num_classes=4))
    with pytest.raises(ConfigError, match=r"judge=runs/judge needs labels"):
        report.evaluate(EvaluateRecipe(samples=path, reference=path, out=str(out), judge="runs/judge"), said.append)
    saved = str(tmp_path / "statistics.npz")
    reference.save(reference.compute(open_images(path), tiny, 64), saved)
    with pytest.raises(ConfigError, match=r"judge=runs/judge needs the images"):
        report.evaluate(EvaluateRecipe(samples=saved, reference=path, out=str(out), judge="runs/judge"), said.append)
    assert not said and not Path(out).exists()
