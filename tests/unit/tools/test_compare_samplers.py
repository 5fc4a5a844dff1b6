"""The points of a table of samplers, and the command lines that make none."""

import compare_samplers
import pytest

from dist_diffusion.config.load import load_options
from dist_diffusion.config.points import Point
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.errors import ConfigError

BASE = load_options(SampleRecipe, ["model=m", "out=o", "seed=9", "sampler.clip_x0=false", "guidance.mode=cfg"])


def points(*samplers: str, steps: tuple[str, ...] = ("10", "20"), seeds: tuple[int, ...] = (0,)) -> list[Point]:
    return compare_samplers.points_of(BASE, samplers, steps, seeds)


def test_a_point_for_each_sampler_number_of_steps_and_seed() -> None:
    made = points("ddim", "heun:karras", seeds=(0, 3))
    assert [point.name for point in made] == [
        f"{sampler}-{steps}-seed{seed}"
        for sampler in ("ddim-even", "heun-karras")
        for steps in (10, 20)
        for seed in (0, 3)
    ]
    last = made[-1].recipe
    assert (last.sampler.name, last.sampler.spacing, last.sampler.steps) == ("heun", "karras", "20")
    assert (last.seed, last.out) == (3, "o/points/heun-karras-20-seed3")
    assert not last.sampler.clip_x0 and last.guidance == BASE.guidance and last.model == "m"


def test_a_sampler_may_have_steps_of_its_own() -> None:
    """Then --steps is not of it; two ways to say one point make one."""
    made = points("ddpm:even:90,60,60,20,20", "ddim::20", "ddim:even:20", "dpmpp_2m:karras")
    assert [point.name for point in made] == [
        *("ddpm-even-90_60_60_20_20-seed0", "ddim-even-20-seed0"),
        *("dpmpp_2m-karras-10-seed0", "dpmpp_2m-karras-20-seed0"),
    ]
    assert made[0].recipe.sampler.steps == "90,60,60,20,20"
    assert [point.name for point in points("ddim:even:20", steps=())] == ["ddim-even-20-seed0"]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("ddim", "--samplers ddim gives no steps: add them as NAME:SPACING:STEPS, or give --steps"),
        ("dimm:even:20", "'sampler.name=dimm' on the command line"),
        ("ddim:evn:20", "'sampler.spacing=evn' on the command line"),
    ],
)
def test_what_makes_no_point_is_refused(sampler: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        points(sampler, steps=())
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "instead"), [("seed=3", "--seeds"), ("sampler.spacing=karras", "--samplers"), ("out=o", "OUT")]
)
def test_no_setting_is_given_in_vain(setting: str, instead: str) -> None:
    assert compare_samplers.checked(["batch_size=5", "sampler.eta=1"]) == ["batch_size=5", "sampler.eta=1"]
    with pytest.raises(ConfigError, match=f"--set {setting}: give {instead} instead"):
        compare_samplers.checked(["batch_size=5", setting])
