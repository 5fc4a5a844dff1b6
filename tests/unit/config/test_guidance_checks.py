"""Settings of samplers and guidance that cannot be: each message names the key to change."""

from pathlib import Path

import pytest

from dist_diffusion.config.load import load
from dist_diffusion.config.sampling_checks import check_sample
from dist_diffusion.config.schema import SampleRecipe
from dist_diffusion.errors import ConfigError

PATH = str(Path(__file__).parents[3] / "configs/demo/sample.yaml")


def check(*settings: str) -> SampleRecipe:
    recipe = load(SampleRecipe, PATH, ["model=m", "out=o", *settings])
    check_sample(recipe)
    return recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampler.name=midpoint"], "sampler.name"),
        (["sampler.eta=1.5"], "sampler.eta=1.5: expected 0 to 1"),
        (["sampler.name=heun", "sampler.eta=0.5"], "sampler.eta=0.5 is DDIM's; sampler.name is heun"),
        (["sampler.sigma_min=-0.1"], "sampler.sigma_min=-0.1"),
        (["sampler.sigma_min=0"], "sampler.sigma_min=0.0"),
        (["sampler.sigma_min=5", "sampler.sigma_max=5"], "sampler.sigma_max=5.0: expected the first"),
        (["sampler.sigma_max=.nan"], "sampler.sigma_max=nan"),
        (["sampler.rho=0"], "sampler.rho=0.0: expected 1 to 1000"),
        (["sampler.rho=0.001"], "sampler.rho=0.001: expected 1 to 1000"),
        (["sampler.rho=.inf"], "sampler.rho=inf: expected 1 to 1000"),
        (["sampler.name=heun", "sampler.churn=-1"], "sampler.churn=-1.0: expected 0 or more"),
        (["sampler.churn=10"], "sampler.churn=10.0 is of euler and heun; sampler.name is ddim"),
        (["sampler.name=dpmpp_sde", "sampler.churn=10"], "sampler.name is dpmpp_sde"),
        (["sampler.name=euler", "sampler.churn_noise=0"], "sampler.churn_noise=0.0: expected a number above 0"),
        (["sampler.name=euler", "sampler.churn_max=-2"], "sampler.churn_max=-2.0: expected 0 or more"),
        (["guidance.interval=[2.0,0.5]"], "guidance.interval=[2.0, 0.5]: expected two values"),
        (["guidance.interval=[1.0,1.0]"], "guidance.interval=[1.0, 1.0]"),
        (["guidance.interval=[-1.0,3.0]"], "guidance.interval=[-1.0, 3.0]"),
        (["guidance.interval=[.nan,3.0]"], "guidance.interval=[nan, 3.0]"),
        (["guidance.interval=[0.1]"], "guidance.interval"),
        (["guidance.cfg_scale=.nan"], "guidance.cfg_scale=nan: expected a number"),
        (["guidance.classifier_scale=.inf"], "guidance.classifier_scale=inf: expected a number"),
        (["guidance.auto_scale=.nan", "guidance.auto_model=w"], "guidance.auto_scale=nan: expected a number"),
        (["guidance.cfg_rescale=1.5"], "guidance.cfg_rescale=1.5: expected 0 to 1"),
        (["guidance.apg_eta=-0.1"], "guidance.apg_eta=-0.1: expected 0 or more"),
        (["guidance.apg_norm=0"], "guidance.apg_norm=0.0: expected a number above 0"),
        (["guidance.apg_momentum=-1.5"], "guidance.apg_momentum=-1.5: expected -1 to 1"),
        (["guidance.classifier_temperature=0"], "guidance.classifier_temperature=0.0: expected a number above 0"),
        (["guidance.gradient_clamp=-1"], "guidance.gradient_clamp=-1.0: expected a number above 0"),
        (["guidance.mode=both"], "guidance.classifier is not given"),
        (["guidance.auto_scale=2"], "guidance.auto_model is not given"),
        (["guidance.mode=cfg", "guidance.cfg_plus_plus=true"], "guidance.cfg_scale=3.0: expected 0 to 1"),
    ],
)
def test_each_message_says_which_setting_to_change(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(*settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "dpmpp_2m", "dpmpp_sde", "unipc"])
def test_cfg_plus_plus_is_of_first_order_samplers_without_noise(sampler: str) -> None:
    given = ["guidance.mode=cfg", "guidance.cfg_plus_plus=true", "guidance.cfg_scale=0.6"]
    check(*given, "sampler.name=euler")
    check(*given, "sampler.name=ddim")
    for wrong in (f"sampler.name={sampler}", "sampler.eta=0.5"):
        with pytest.raises(ConfigError, match=r"guidance\.cfg_plus_plus is for sampler\.name=euler, and ddim"):
            check(*given, wrong)


@pytest.mark.parametrize(
    "settings",
    [
        ["sampler.name=heun", "sampler.churn=40", "sampler.churn_min=0.05", "sampler.churn_max=50"],
        ["sampler.name=dpmpp_2m", "sampler.spacing=karras", "sampler.sigma_max=.inf"],
        ["guidance.mode=cfg", "guidance.interval=[0.0,.inf]"],
        ["guidance.mode=cfg", "guidance.cfg_scale=0"],
        ["guidance.mode=cfg", "guidance.apg_eta=0", "guidance.apg_norm=5", "guidance.apg_momentum=-0.5"],
        ["guidance.mode=none", "guidance.auto_scale=2", "guidance.auto_model=w"],
        ["guidance.mode=both", "guidance.classifier=c", "guidance.cfg_rescale=0.7", "guidance.gradient_clamp=1"],
    ],
)
def test_what_can_be_is_taken(settings: list[str]) -> None:
    check(*settings)
