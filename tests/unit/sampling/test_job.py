"""What a job pins, and what a later version may add to its settings."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from dist_diffusion.config.sampling_checks import check_sample
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.diffusion.options import GuidanceOptions, SamplerOptions
from dist_diffusion.errors import ConfigError, StorageError
from dist_diffusion.sampling.exports import find_sources, notes, wanted_models
from dist_diffusion.sampling.job import Job, create_job, find_job

NEW_KEYS = ("sampler.spacing", "sampler.churn_max", "guidance.interval", "guidance.auto_scale")


@pytest.fixture
def recipe(tmp_path: Path) -> SampleRecipe:
    """Of exports that nothing here reads."""
    for role in ("model", "classifier", "weaker"):
        (tmp_path / role).write_text(role)
    guidance = GuidanceOptions(classifier=str(tmp_path / "classifier"))
    return SampleRecipe(model=str(tmp_path / "model"), out=str(tmp_path / "out"), guidance=guidance)


def begun(recipe: SampleRecipe) -> Job:
    return create_job(recipe, find_sources(wanted_models(recipe), recipe.ema), 1, "cpu", None)


def guided(recipe: SampleRecipe, **changes: object) -> SampleRecipe:
    return dataclasses.replace(recipe, guidance=dataclasses.replace(recipe.guidance, **changes))  # type: ignore[arg-type]


def test_a_job_of_an_earlier_version_goes_on_with_what_was_the_only_way(recipe: SampleRecipe) -> None:
    path = Path(begun(recipe).out, "job.json")
    content = json.loads(path.read_text())
    for key in NEW_KEYS:
        del content["settings"][key]
    path.write_text(json.dumps(content))
    assert find_job(recipe, "cpu") is not None
    changed = dataclasses.replace(recipe, sampler=SamplerOptions(spacing="karras"))
    with pytest.raises(ConfigError, match=r"\(sampler\.spacing: even -> karras\)"):
        find_job(changed, "cpu")


def test_lists_and_tuples_are_one_setting(recipe: SampleRecipe) -> None:
    """A recipe may hold either, job.json has lists."""
    begun(guided(recipe, interval=(0.1, 2.0)))
    for interval in ((0.1, 2.0), [0.1, 2.0]):
        assert find_job(guided(recipe, interval=interval), "cpu") is not None
    with pytest.raises(ConfigError, match=r"guidance\.interval: \[0\.1, 2\.0\] -> \[0\.1, 3\.0\]"):
        find_job(guided(recipe, interval=(0.1, 3.0)), "cpu")


def test_an_open_interval_is_json(recipe: SampleRecipe) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    opened = guided(recipe, interval=(0.3, math.inf))
    json.loads(Path(begun(opened).out, "job.json").read_text(), parse_constant=refuse)
    assert find_job(opened, "cpu") is not None
    with pytest.raises(ConfigError, match=r"guidance\.interval: \[0\.3, 'Infinity'\] -> \[0\.3, 3\.0\]"):
        find_job(guided(recipe, interval=(0.3, 3.0)), "cpu")


def test_roles_are_those_that_the_guidance_uses(recipe: SampleRecipe, tmp_path: Path) -> None:
    weaker = str(tmp_path / "weaker")
    assert set(wanted_models(guided(recipe, auto_model=weaker))) == {"model"}
    assert set(wanted_models(guided(recipe, auto_model=weaker, auto_scale=1.5))) == {"model", "auto_model"}
    both = guided(recipe, auto_model=weaker, auto_scale=1.5, mode="both", uncond_model="u")
    assert set(wanted_models(both)) == {"model", "classifier", "uncond_model", "auto_model"}
    with pytest.raises(ConfigError, match=r"guidance\.auto_model is not given"):
        check_sample(guided(recipe, auto_scale=1.5))


def test_the_weaker_model_is_pinned_by_its_content(recipe: SampleRecipe, tmp_path: Path) -> None:
    recipe = guided(recipe, auto_model=str(tmp_path / "weaker"), auto_scale=2.0)
    job = begun(recipe)
    assert Path(job.model_path("auto_model")).read_text() == "weaker"
    (tmp_path / "copy").write_text("weaker")
    moved = guided(recipe, auto_model=str(tmp_path / "copy"))
    assert find_job(moved, "cpu") == job
    assert notes(job.out, job.models, wanted_models(moved), None) == []
    (tmp_path / "other").write_text("another")
    other = wanted_models(guided(recipe, auto_model=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="holds a job of auto_model"):
        notes(job.out, job.models, other, None)


def test_a_damaged_copy_is_found(recipe: SampleRecipe) -> None:
    job = begun(recipe)
    Path(job.model_path("model")).write_text("modeL")
    with pytest.raises(StorageError, match=r"model\.safetensors is missing or damaged"):
        find_job(recipe, "cpu")
