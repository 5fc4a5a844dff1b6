"""The points of a sweep: a pure function of its recipe, and the recipes that make none."""

import dataclasses

import pytest
from support import ROOT

from dist_diffusion.config.load import load, load_options, to_yaml
from dist_diffusion.config.points import guidance_points
from dist_diffusion.config.sampling_checks import check_sweep
from dist_diffusion.config.schema import SampleRecipe, SweepRecipe
from dist_diffusion.diffusion.options import GuidanceOptions
from dist_diffusion.errors import ConfigError

PATHS = ["model=m", "out=o", "reference=r", "guidance.classifier=c"]
SCALES = ["cfg_scales=[1,1.25]", "classifier_scales=[0.5]", "both=[[1.5,1],[2,2.5]]"]


def recipe_of(*overrides: str) -> SweepRecipe:
    return load_options(SweepRecipe, [*PATHS, *SCALES, *overrides])


def test_points_are_the_modes_with_their_scales() -> None:
    points = guidance_points(recipe_of("sampler.name=ddim", "guidance.interval=[0.1,2]", "seed=4", "ema=ema_1"))
    assert [point.name for point in points] == [
        "none",
        "cfg-1",
        "cfg-1.25",
        "classifier-0.5",
        "both-1.5-1",
        "both-2-2.5",
    ]
    scales = [(p.recipe.guidance.mode, p.recipe.guidance.cfg_scale, p.recipe.guidance.classifier_scale) for p in points]
    assert [scales[1], scales[3], scales[5]] == [("cfg", 1.0, 1.0), ("classifier", 1.5, 0.5), ("both", 2.0, 2.5)]
    for point in points:
        # Apart from the point's own, all is the recipe's.
        own = dataclasses.replace(
            point.recipe.guidance, mode="none", cfg_scale=GuidanceOptions().cfg_scale, classifier_scale=1.0
        )
        assert own == GuidanceOptions(classifier="c", interval=(0.1, 2.0))
        rest = dataclasses.replace(point.recipe, guidance=GuidanceOptions())
        expected = SampleRecipe(model="m", out=f"o/points/{point.name}", seed=4, ema="ema_1", sampler=rest.sampler)
        assert rest == expected and rest.sampler.name == "ddim"


def test_only_the_modes_that_are_asked_for() -> None:
    assert [point.name for point in guidance_points(recipe_of("modes=[cfg]"))] == ["cfg-1", "cfg-1.25"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reference=null"], "reference is not given"),
        (["cfg_scales=[2,1,2.0]"], "the sweep has cfg-2 more than once"),
        (["modes=[none,none]"], "the sweep has none more than once"),
        (["modes=[]"], "modes is empty"),
        (["cfg_scales=[]"], "modes has cfg, but cfg_scales is empty"),
        (["both=[]"], "modes has both, but both is empty"),
        (["both=[[1,2,3]]"], r"both holds \[1, 2, 3\]: expected pairs of numbers"),
        (["both=[[a,1]]"], r"both holds \['a', 1\]: expected pairs of numbers"),
        (["classifier_scales=[.inf]"], "a scale of inf"),
        (["guidance.cfg_scale=3"], r"guidance\.cfg_scale=3\.0: a sweep's points have their own"),
        (["guidance.mode=cfg"], r"guidance\.mode=cfg: a sweep's points have their own"),
        (["guidance.classifier=null"], r"guidance\.classifier is not given"),
        (["guidance.auto_scale=2"], r"guidance\.auto_model is not given"),
        (["shard_size=100"], "shard_size=100 is not a multiple of batch_size=64"),
        (["grid_images=-1"], "grid_images=-1"),
        (["num_reference=0"], "num_reference=0"),
    ],
)
def test_recipes_that_make_no_sweep_are_refused(overrides: list[str], message: str) -> None:
    recipe = recipe_of(*overrides)
    with pytest.raises(ConfigError, match=message):
        check_sweep(recipe)
    # --print-config shows what was given, whatever it is.
    assert "cfg_scales:" in to_yaml(recipe)


def test_a_path_that_no_mode_uses_is_not_needed() -> None:
    check_sweep(recipe_of("modes=[none,cfg]", "guidance.classifier=null", "both=[]", "classifier_scales=[]"))


@pytest.mark.parametrize(("name", "num"), [("fashion_mnist", 14), ("demo", 11)])
def test_the_recipes_make_sweeps_and_name_no_path(name: str, num: int) -> None:
    path = str(ROOT / f"configs/{name}/sweep.yaml")
    recipe = load(SweepRecipe, path, [])
    guidance = recipe.guidance
    assert {recipe.model, recipe.out, recipe.reference, recipe.judge, guidance.classifier} == {None}
    recipe = load(SweepRecipe, path, PATHS)
    check_sweep(recipe)
    assert len(guidance_points(recipe)) == num
