"""Which networks may work together."""

import dataclasses
from typing import Any

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe, TrainRecipe
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, ObjectiveOptions, SamplerOptions
from dist_diffusion.errors import ConfigError, NonFiniteError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling.generate import check_finite, make_generator
from dist_diffusion.sampling.models import Models
from dist_diffusion.weights.load import LoadedModel

DATA = DataOptions(image_size=8)
DISCRETE, CONTINUOUS = DiffusionOptions(num_timesteps=100), DiffusionOptions(schedule="log_snr", variance="fixed_small")


STEPS = SamplerOptions(steps="4")


def loaded(recipe: TrainRecipe, num_classes: int = 3) -> LoadedModel:
    """Nothing is generated: any module will do."""
    return LoadedModel(torch.nn.Identity(), resolve(recipe, num_classes), f"{recipe.task}.safetensors", {})


@pytest.mark.parametrize(
    ("process", "change", "message"),
    [
        (DISCRETE, {"schedule": "cosine"}, "cosine schedule of 100 timesteps, the model on the linear schedule of 100"),
        (DISCRETE, {"num_timesteps": 200}, "schedule of 200 timesteps, the model on the linear schedule of 100"),
        (DISCRETE, {"rescale_timesteps": True}, "of 100 timesteps, rescaled to 1000, the model on the linear schedule"),
        (CONTINUOUS, {"log_snr_max": 15.0}, "log_snr schedule from -20.0 to 15.0, the model on the log_snr schedule"),
    ],
)
def test_networks_of_other_noise_levels_are_refused(process: DiffusionOptions, change: dict, message: str) -> None:
    other = dataclasses.replace(process, **change)
    model = loaded(DiffusionRecipe(data=DATA, diffusion=process))
    reference = DiffusionRecipe(data=DATA, diffusion=other, model=UNetOptions(num_classes=0))
    pairs = [
        (
            "guidance.classifier",
            "classifier",
            Models(model, classifier=loaded(ClassifierRecipe(data=DATA, diffusion=other))),
        ),
        ("guidance.uncond_model", "cfg", Models(model, unconditional=loaded(reference))),
        ("guidance.auto_model", "none", Models(model, weaker=loaded(DiffusionRecipe(data=DATA, diffusion=other)))),
    ]
    for key, mode, models in pairs:
        with pytest.raises(ConfigError) as caught:
            make_generator(models, SamplerOptions(steps="4"), GuidanceOptions(mode=mode), 0, "cpu")  # type: ignore[arg-type]
        assert str(caught.value).startswith(f"{key}=") and message in str(caught.value)


def test_what_makes_no_difference_is_not_compared() -> None:
    """At 1000 timesteps rescaling is nothing, and continuous time has no number of them."""
    for process, change in [(DiffusionOptions(), {"rescale_timesteps": True}), (CONTINUOUS, {"num_timesteps": 50})]:
        other = dataclasses.replace(process, **change)
        models = Models(
            loaded(DiffusionRecipe(data=DATA, diffusion=process)),
            classifier=loaded(ClassifierRecipe(data=DATA, diffusion=other)),
        )
        make_generator(models, SamplerOptions(steps="4"), GuidanceOptions(mode="classifier"), 0, "cpu")


def tried(models: Models, sampler: SamplerOptions = STEPS, **guidance: Any) -> None:
    """What is known before a job is pinned."""
    make_generator(models, sampler, GuidanceOptions(**guidance), 0, "cpu")


def diffusion(image_size: int = 8, classes: bool = True, p_uncond: float = 0.0, process: DiffusionOptions = DISCRETE):
    return loaded(
        DiffusionRecipe(
            data=DataOptions(image_size=image_size),
            diffusion=process,
            model=UNetOptions(num_classes=None if classes else 0),
            objective=ObjectiveOptions(p_uncond=p_uncond),
        )
    )


def test_a_classifier_of_other_images_is_refused() -> None:
    def classifier(image_size: int, num_classes: int) -> LoadedModel:
        recipe = ClassifierRecipe(data=DataOptions(image_size=image_size), diffusion=DISCRETE)
        return loaded(recipe, num_classes)

    for other, message in (
        (classifier(16, 3), r"guidance\.classifier=classifier\.safetensors has image size 16, the model has 8"),
        (classifier(8, 5), r"guidance\.classifier=classifier\.safetensors has number of classes 5, the model has 3"),
        (diffusion(), r"guidance\.classifier=diffusion\.safetensors is a diffusion model"),
    ):
        for mode in ("classifier", "both"):
            with pytest.raises(ConfigError, match=message):
                tried(Models(diffusion(p_uncond=0.1), classifier=other), mode=mode)
    # An unconditional model takes the classes of any classifier.
    tried(Models(diffusion(classes=False), classifier=classifier(8, 5)), mode="classifier")


def test_classifier_free_guidance_needs_an_unconditional_estimate() -> None:
    with pytest.raises(ConfigError, match=r"without label dropout .* give guidance\.uncond_model, or use mode"):
        tried(Models(diffusion()), mode="cfg")
    with pytest.raises(
        ConfigError, match=r"guidance\.mode: .* is unconditional, classifier-free guidance needs labels"
    ):
        tried(Models(diffusion(classes=False)), mode="cfg")
    tried(Models(diffusion(p_uncond=0.1)), mode="cfg")
    tried(Models(diffusion(), unconditional=diffusion(classes=False)), mode="cfg")


def test_models_that_are_mixed_make_the_same_images() -> None:
    for other in (diffusion(classes=False, image_size=16), diffusion()):
        with pytest.raises(ConfigError, match=r"guidance\.uncond_model=.*expected an unconditional model of 8 px"):
            tried(Models(diffusion(), unconditional=other), mode="cfg")
    for other in (diffusion(image_size=16), diffusion(classes=False)):
        with pytest.raises(ConfigError, match=r"guidance\.auto_model=.*expected a weaker model of 8 px and 3 classes"):
            tried(Models(diffusion(), weaker=other), auto_scale=2.0)
    with pytest.raises(ConfigError, match=r"guidance\.auto_model=classifier\.safetensors is a classifier"):
        tried(Models(diffusion(), weaker=loaded(ClassifierRecipe(data=DATA, diffusion=DISCRETE))), auto_scale=2.0)
    tried(Models(diffusion(), weaker=diffusion(p_uncond=0.1)), auto_scale=2.0)


@pytest.mark.parametrize("process", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_an_interval_outside_of_the_path_is_refused(process: DiffusionOptions) -> None:
    """The message has the levels that the sampler does walk."""
    sampler = SamplerOptions("heun", "10", "karras", sigma_min=0.02, sigma_max=80)
    model = diffusion(p_uncond=0.1, process=process)
    for outside in ((200.0, 300.0), (0.0, 0.001), (80.0, 90.0), (50.0, 55.0)):
        with pytest.raises(ConfigError) as caught:
            tried(Models(model), sampler, mode="cfg", interval=outside)
        found = str(caught.value)
        assert found.startswith(f"guidance.interval={list(outside)} holds none") and "change guidance.interval" in found
        assert "from sigma / alpha = 80 down to 0.0" in found
    for inside in ((0.0, 0.1), (50.0, 80.0), (79.0, 1000.0), (0.1, 10.0)):
        tried(Models(model), sampler, mode="cfg", interval=inside)


def test_a_path_that_cannot_be_is_refused() -> None:
    for options, message in (
        (SamplerOptions(steps="101"), "steps=101: section 1 has 100 timesteps, 101 were asked for"),
        (SamplerOptions("heun", "ddim10", "karras"), r"sampler\.steps=ddim10: with sampler\.spacing=karras expected"),
        (
            SamplerOptions("heun", "10", "karras", sigma_min=1e3, sigma_max=1e4),
            r"sampler\.sigma_min=1000\.0, .*trained",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            tried(Models(diffusion()), options)
    mean = diffusion(process=dataclasses.replace(DISCRETE, prediction="mean"))
    with pytest.raises(ConfigError, match=r"sampler\.spacing=log_snr.*diffusion\.prediction=mean"):
        tried(Models(mean), SamplerOptions("dpmpp_2m", "10", "log_snr"))
    with pytest.raises(ConfigError, match=r"sampler\.churn=3.*diffusion\.prediction=mean"):
        tried(Models(mean), SamplerOptions("euler", "10", churn=3))
    for models in (Models(diffusion(), weaker=mean), Models(diffusion(), unconditional=without_labels(mean))):
        tried(models, SamplerOptions("dpmpp_2m", "10", "trailing"), mode="cfg" if models.unconditional else "none")
        with pytest.raises(ConfigError, match=r"sampler\.spacing=karras.*diffusion\.prediction=mean"):
            tried(models, SamplerOptions("heun", "10", "karras"), mode="cfg" if models.unconditional else "none")


def without_labels(model: LoadedModel) -> LoadedModel:
    """The same as an unconditional model."""
    recipe = dataclasses.replace(model.recipe, model=UNetOptions(num_classes=0))
    return loaded(recipe)


def test_a_classifier_is_no_unconditional_model() -> None:
    models = Models(loaded(DiffusionRecipe(data=DATA)), unconditional=loaded(ClassifierRecipe(data=DATA)))
    with pytest.raises(ConfigError, match=r"guidance\.uncond_model=classifier\.safetensors is a classifier"):
        make_generator(models, SamplerOptions(steps="4"), GuidanceOptions(mode="cfg"), 0, "cpu")


def test_images_that_are_not_finite_are_named() -> None:
    """As bytes they would be black."""
    x = torch.zeros(3, 3, 2, 2)
    check_finite(x, [7, 8, 9])
    x[1, 0, 0, 0], x[2] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match="images 8, 9 are not finite"):
        check_finite(x, [7, 8, 9])
