"""The papers' recipes: each is its table's, and its network has the released checkpoint's tensors, in order."""

import math
from pathlib import Path

import pytest
import torch
from support import ROOT

from dist_diffusion.config.checks import check_train
from dist_diffusion.config.load import load, load_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DiffusionRecipe, SampleRecipe, TrainRecipe
from dist_diffusion.diffusion.spacing import sampler_levels
from dist_diffusion.diffusion.timeline import timeline
from dist_diffusion.models.build import build

KEYS = Path(__file__).parent / "checkpoint_keys"
FREE = ["run_dir=r", "data.shards=s"]

# arXiv 2105.05233, Tables 11 to 13: keys, parameters in millions, schedule, dropout, batch, rate, thousands of steps.
ADM = {
    "64x64_diffusion": ("64_diffusion", 295.904, "cosine", 0.1, 2048, 3e-4, 540),
    "128x128_diffusion": ("128_diffusion", 421.530, "linear", 0.0, 256, 1e-4, 4360),
    "256x256_diffusion": ("256_diffusion", 553.838, "linear", 0.0, 256, 1e-4, 1980),
    "256x256_diffusion_uncond": ("256_uncond", 552.814, "linear", 0.0, 256, 1e-4, 2000),
    "512x512_diffusion": ("512_diffusion", 558.998, "linear", 0.0, 256, 1e-4, 1940),
    "64_256_upsampler": ("64_256_up", 311.796, "linear", 0.0, 256, 1e-4, 500),
    "128_512_upsampler": ("128_512_up", 308.835, "linear", 0.0, 256, 1e-4, 1050),
    "lsun_bedroom": ("256_uncond", 552.814, "linear", 0.1, 256, 1e-4, 500),
    "lsun_cat": ("256_uncond", 552.814, "linear", 0.1, 256, 1e-4, 200),
    "lsun_horse": ("256_uncond", 552.814, "linear", 0.1, 256, 1e-4, 250),
    "lsun_horse_nodropout": ("256_uncond", 552.814, "linear", 0.0, 256, 1e-4, 250),
    "64x64_classifier": ("64_classifier", 65.439, "cosine", 0.0, 1024, 6e-4, 300),
    "128x128_classifier": ("128_classifier", 42.568, "linear", 0.0, 256, 3e-4, 300),
    "256x256_classifier": ("256_classifier", 54.096, "linear", 0.0, 256, 3e-4, 500),
    "512x512_classifier": ("512_classifier", 54.448, "linear", 0.0, 256, 3e-4, 500),
}
# From arXiv 2207.12598: the network is ADM's but for a null label's row and an output of three channels.
CFG = {
    "imagenet64": ("64_diffusion", 0.1, 2048, 3e-4, 400, "eps", "uniform"),
    "imagenet64_v": ("64_diffusion", 0.1, 2048, 3e-4, 400, "v", "uniform"),
    "imagenet64_v_min_snr": ("64_diffusion", 0.1, 2048, 3e-4, 400, "v", "min_snr"),
    "imagenet128": ("128_diffusion", 0.0, 256, 1e-4, 2700, "eps", "uniform"),
}


def recipe_of(folder: str, name: str) -> TrainRecipe:
    recipe = load_train(str(ROOT / "configs" / folder / f"{name}.yaml"), FREE)
    check_train(recipe, world_size=32)
    return resolve(recipe, 1000)


def shapes_of(recipe: TrainRecipe) -> list[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        state = build(recipe.model).state_dict()
    return [(name, tuple(tensor.shape)) for name, tensor in state.items()]


def released(keys: str) -> list[tuple[str, tuple[int, ...]]]:
    """The lines `name (shape)` of a checkpoint's listing."""
    lines = [line.partition(" ") for line in (KEYS / f"{keys}.txt").read_text().splitlines()]
    return [(name, tuple(int(n) for n in shape.strip("()").split(",") if n.strip())) for name, _, shape in lines]


def test_there_is_a_recipe_for_every_model_of_the_papers() -> None:
    for folder, known in (("adm", ADM), ("cfg", CFG), ("edm", ["imagenet64"])):
        assert {path.stem for path in (ROOT / "configs" / folder).glob("*.yaml")} == set(known)


@pytest.mark.parametrize("name", ADM)
def test_adm_recipes(name: str) -> None:
    keys, millions, schedule, dropout, batch, rate, steps = ADM[name]
    recipe = recipe_of("adm", name)
    shapes = shapes_of(recipe)
    assert shapes == released(keys)
    assert sum(math.prod(shape) for _, shape in shapes) == pytest.approx(millions * 1e6, abs=600)
    assert (recipe.diffusion.schedule, recipe.diffusion.num_timesteps) == (schedule, 1000)
    assert (recipe.model.dropout, recipe.train.global_batch, recipe.optim.lr) == (dropout, batch, rate)
    assert recipe.train.steps == 1000 * steps
    if name.endswith("classifier"):
        assert (recipe.optim.decay, recipe.optim.weight_decay) == ("linear", 0.2 if name.startswith("64x64") else 0.05)
        assert recipe.data.random_crop
    else:
        assert (recipe.optim.decay, recipe.optim.weight_decay, recipe.ema.decays) == ("none", 0.0, (0.9999,))
        assert (recipe.diffusion.prediction, recipe.diffusion.variance) == ("eps", "learned_range")


def without_variance(keys: str, num_labels: int) -> list[tuple[str, tuple[int, ...]]]:
    """The listing of a checkpoint's network with an output of three channels and so many label rows."""
    changed = {"out.2.weight": (3,), "out.2.bias": (3,), "label_emb.weight": (num_labels,)}
    return [(key, changed[key] + shape[1:] if key in changed else shape) for key, shape in released(keys)]


@pytest.mark.parametrize("name", CFG)
def test_classifier_free_guidance_recipes(name: str) -> None:
    keys, dropout, batch, rate, steps, prediction, weighting = CFG[name]
    recipe = recipe_of("cfg", name)
    assert isinstance(recipe, DiffusionRecipe)
    assert shapes_of(recipe) == without_variance(keys, 1001)
    assert (recipe.diffusion.schedule, recipe.diffusion.prediction) == ("log_snr", prediction)
    assert (recipe.objective.weighting, recipe.objective.p_uncond) == (weighting, 0.1)
    assert (recipe.model.dropout, recipe.train.global_batch, recipe.optim.lr) == (dropout, batch, rate)
    assert recipe.train.steps == 1000 * steps


def test_edms_recipe() -> None:
    """arXiv 2206.00364, Table 1, and the released code's options."""
    recipe = recipe_of("edm", "imagenet64")
    assert isinstance(recipe, DiffusionRecipe)
    shapes = shapes_of(recipe)
    assert shapes == without_variance("64_diffusion", 1000)
    assert sum(math.prod(shape) for _, shape in shapes) == pytest.approx(295.9e6, abs=0.05e6)
    times, objective = timeline(recipe.diffusion), recipe.objective
    assert (times.sigma_min, times.sigma_max) == pytest.approx((0.002, 80), rel=1e-5)
    assert (recipe.diffusion.prediction, recipe.diffusion.sigma_data) == ("edm", 0.5)
    assert (objective.loss, objective.weighting, objective.p_uncond) == ("simple", "uniform", 0)
    assert (objective.timesteps, objective.log_sigma_mean, objective.log_sigma_std) == ("log_normal", -1.2, 1.2)
    assert (
        (recipe.train.steps - 1) * recipe.train.global_batch < 2.5e9 <= recipe.train.steps * recipe.train.global_batch
    )
    assert recipe.ema.decays[0] ** (50e6 / recipe.train.global_batch) == pytest.approx(0.5, rel=1e-4)
    assert (recipe.model.dropout, recipe.optim.lr, recipe.optim.warmup_images) == (0.1, 1e-4, 10_000_000)
    sampler = load(SampleRecipe, str(ROOT / "configs/sample/edm.yaml"), []).sampler
    sigmas = [level.edm_sigma for level in sampler_levels(recipe.diffusion, sampler)]
    assert len(sigmas) == 257 and sigmas[-1] == 0
    assert (sigmas[0], sigmas[-2]) == pytest.approx((80, 0.002), rel=1e-5)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_says_first_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
