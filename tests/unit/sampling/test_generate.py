"""Which networks may work together."""

import dataclasses

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe, TrainRecipe
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, SamplerOptions
from dist_diffusion.errors import ConfigError, NonFiniteError
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling.generate import check_finite, make_generator
from dist_diffusion.sampling.models import Models
from dist_diffusion.weights.load import LoadedModel

DATA = DataOptions(image_size=8)
DISCRETE, CONTINUOUS = DiffusionOptions(num_timesteps=100), DiffusionOptions(schedule="log_snr", variance="fixed_small")


def loaded(recipe: TrainRecipe) -> LoadedModel:
    """Nothing is generated: any module will do."""
    return LoadedModel(torch.nn.Identity(), resolve(recipe, num_classes=3), f"{recipe.task}.safetensors", {})


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
