"""From settings to guided denoisers and their cost, with exact networks of a mixture's images."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from unit.diffusion.mixture import IMAGES, Mixture
from unit.diffusion.walks import noise_of

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import ClassifierRecipe, DataOptions, DiffusionRecipe, TrainRecipe
from dist_diffusion.diffusion.denoiser import Model, Prediction
from dist_diffusion.diffusion.guidance import linear, projected, rescaled
from dist_diffusion.diffusion.levels import CLEAN, Level
from dist_diffusion.diffusion.options import DiffusionOptions, GuidanceOptions, ObjectiveOptions, SamplerOptions
from dist_diffusion.diffusion.schedules import sampling_levels
from dist_diffusion.diffusion.spacing import sampler_levels
from dist_diffusion.models.options import UNetOptions
from dist_diffusion.sampling.cost import Evaluations
from dist_diffusion.sampling.generate import make_generator
from dist_diffusion.sampling.guide import Guide
from dist_diffusion.sampling.models import Models
from dist_diffusion.weights.load import LoadedModel

PROCESS = DiffusionOptions(num_timesteps=100, variance="fixed_small")
LEVELS = sampling_levels(PROCESS, "100")
DATA = DataOptions(image_size=2)
WIDER = dataclasses.replace(IMAGES, variances=2 * IMAGES.variances)
"""What a weaker model has learned."""


class Exact(torch.nn.Module):
    """A closed form as a network."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(x, time, labels)


def loaded(recipe: TrainRecipe, model: Model) -> LoadedModel:
    return LoadedModel(Exact(model), resolve(recipe, IMAGES.num_classes), f"{recipe.task}.safetensors", {})


def network(target: Mixture = IMAGES, levels: list[Level] = LEVELS) -> LoadedModel:
    recipe = DiffusionRecipe(data=DATA, diffusion=PROCESS, objective=ObjectiveOptions(loss="simple", p_uncond=0.1))
    return loaded(recipe, target.network(PROCESS, levels))


def without_classes() -> LoadedModel:
    recipe = DiffusionRecipe(
        data=DATA,
        diffusion=PROCESS,
        objective=ObjectiveOptions(loss="simple"),
        model=UNetOptions(num_classes=0),
    )
    exact = IMAGES.network(PROCESS, LEVELS)
    return loaded(recipe, lambda x, time, labels: exact(x, time, None))


def classifier(levels: list[Level] = LEVELS) -> LoadedModel:
    return loaded(ClassifierRecipe(data=DATA, diffusion=PROCESS), IMAGES.classifier(levels))


LEVEL = LEVELS[40]
X = noise_of(0, (6, *IMAGES.shape))()
LABELS = torch.arange(6) % 3


def guide(options: GuidanceOptions, clip_x0: bool = False, **models: LoadedModel) -> tuple[Guide, Evaluations]:
    evaluations = Evaluations()
    return Guide(Models(network(), **models), options, clip_x0, evaluations, None), evaluations


SIGMA = LEVEL.edm_sigma


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Networks answer in float32."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, check_dtype=False)


@pytest.mark.parametrize(
    ("settings", "scale", "network_rows", "classifier_rows"),
    [
        ({"mode": "none"}, 1.0, 1, 0),
        ({"mode": "cfg", "cfg_scale": 3.0}, 3.0, 2, 0),
        ({"mode": "cfg", "cfg_scale": 1.0}, 1.0, 1, 0),
        ({"mode": "cfg", "cfg_scale": 0.0}, 0.0, 2, 0),
        ({"mode": "classifier", "classifier_scale": 2.0}, 3.0, 1, 1),
        ({"mode": "both", "cfg_scale": 2.0, "classifier_scale": 1.5}, 3.5, 2, 1),
        ({"mode": "both", "cfg_scale": 1.0, "classifier_scale": 1.5}, 2.5, 1, 1),
        ({"mode": "both", "cfg_scale": 2.0, "interval": (0.9 * SIGMA, SIGMA)}, 3.0, 2, 1),
        ({"mode": "both", "cfg_scale": 2.0, "interval": (SIGMA, 1.1 * SIGMA)}, 1.0, 1, 0),
        ({"mode": "cfg", "cfg_scale": 2.0, "interval": (0.5 * SIGMA, 0.9 * SIGMA)}, 1.0, 1, 0),
    ],
)
@pytest.mark.parametrize("separate", [False, True], ids=["null label", "uncond_model"])
def test_each_mode_is_its_guided_score_at_its_cost(
    settings: dict[str, Any], scale: float, network_rows: int, classifier_rows: int, separate: bool
) -> None:
    models = {"classifier": classifier(), **({"unconditional": without_classes()} if separate else {})}
    options = GuidanceOptions(**{"classifier_scale": 1.0, **settings})
    made, evaluations = guide(options, **models)
    found = made.score_form()(X, LEVEL, LABELS)
    expected = -LEVEL.sigma * IMAGES.guided_score(X, LEVEL, LABELS, scale)
    close(found.eps, expected)
    assert (evaluations.network, evaluations.classifier) == (6 * network_rows, 6 * classifier_rows)


def eps(target: Mixture, labels: torch.Tensor | None) -> torch.Tensor:
    return -LEVEL.sigma * target.score(X, LEVEL, labels)


def test_autoguidance_leads_away_from_the_weaker_model_in_any_mode() -> None:
    for mode, mixed, rows in [
        ("none", eps(IMAGES, LABELS), 2),
        ("cfg", 2 * eps(IMAGES, LABELS) - eps(IMAGES, None), 3),
    ]:
        options = GuidanceOptions(mode=mode, cfg_scale=2.0, auto_scale=1.8)  # type: ignore[arg-type]
        made, evaluations = guide(options, weaker=network(WIDER))
        found = made.denoiser()(X, LEVEL, LABELS)
        expected = 1.8 * mixed - 0.8 * eps(WIDER, LABELS)
        close(found.eps, expected)
        assert evaluations.network == 6 * rows


@pytest.mark.parametrize("scale", [0.6, 1.0])
@pytest.mark.parametrize("auto_scale", [1.0, 1.8])
def test_cfg_plus_plus_needs_both_estimates_whatever_comes_after(scale: float, auto_scale: float) -> None:
    options = GuidanceOptions(
        mode="both", cfg_scale=scale, cfg_plus_plus=True, auto_scale=auto_scale, classifier_scale=1.0
    )
    weaker = {"weaker": network(WIDER)} if auto_scale != 1 else {}
    made, evaluations = guide(options, clip_x0=True, classifier=classifier(), **weaker)
    found = made.score_form()(X, LEVEL, LABELS)
    close(found.direction, eps(IMAGES, None))
    assert (found.eps - found.direction).abs().max() > 0.05
    assert evaluations.network == 6 * (2 + len(weaker))


def test_settings_are_their_rules() -> None:
    exact = IMAGES.denoiser()
    pair: tuple[Prediction, Prediction] = exact(X, LEVEL, LABELS), exact(X, LEVEL, None)
    for settings, rule in [
        ({}, linear(4.0)),
        ({"cfg_rescale": 0.7}, rescaled(linear(4.0), 0.7)),
        ({"apg_eta": 0.2}, projected(4.0, 0.2, None, 0.0)),
        ({"apg_norm": 0.1}, projected(4.0, 1.0, 0.1, 0.0)),
        ({"apg_eta": 0.0, "apg_norm": 0.3, "cfg_rescale": 1.0}, rescaled(projected(4.0, 0.0, 0.3, 0.0), 1.0)),
    ]:
        made, _ = guide(GuidanceOptions(mode="cfg", cfg_scale=4.0, **settings))  # type: ignore[arg-type]
        found = made.denoiser()(X, LEVEL, LABELS)
        close(found.eps, rule(X, LEVEL, *pair).eps)


def test_momentum_alone_is_a_rule_that_remembers() -> None:
    made, _ = guide(GuidanceOptions(mode="cfg", cfg_scale=4.0, apg_momentum=-0.5))
    denoiser, exact, rule = made.denoiser(), IMAGES.denoiser(), projected(4.0, 1.0, None, -0.5)
    for level in LEVELS[40:43]:
        found = denoiser(X, level, LABELS)
        close(found.eps, rule(X, level, exact(X, level, LABELS), exact(X, level, None)).eps)
    assert (found.eps - linear(4.0)(X, level, exact(X, level, LABELS), exact(X, level, None)).eps).abs().max() > 0.05


def test_images_are_limited_before_the_classifiers_gradient_alone() -> None:
    options = GuidanceOptions(mode="both", cfg_scale=8.0, classifier_scale=3.0)
    made, _ = guide(options, clip_x0=True, classifier=classifier())
    free, _ = guide(options, classifier=classifier())
    limited = made.denoiser()(X, LEVEL, LABELS)
    close(limited.x0, free.denoiser()(X, LEVEL, LABELS).x0.clamp(-1, 1))
    assert limited.x0.abs().max() == 1
    gradient = made.gradient()
    assert gradient is not None
    shifted = made.score_form()(X, LEVEL, LABELS).x0
    moved = LEVEL.sigma**2 / LEVEL.alpha * gradient(X, LEVEL, LABELS)
    close(shifted, limited.x0 + moved)


STEPS = {"ddpm": 8, "ddim": 8, "euler": 8, "heun": 15, "dpmpp_2m": 8, "dpmpp_sde": 8, "unipc": 8}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("mode", ["none", "cfg", "both"])
def test_every_sampler_makes_images_of_the_labels_at_its_cost(name: str, mode: str) -> None:
    sampler = SamplerOptions(name=name, steps="8", spacing="karras", sigma_max=20)  # type: ignore[arg-type]
    levels = sampler_levels(PROCESS, sampler)
    models = Models(network(IMAGES, levels), classifier=classifier(levels))
    guidance = GuidanceOptions(mode=mode, cfg_scale=2.0, classifier_scale=1.0)  # type: ignore[arg-type]
    generate = make_generator(models, sampler, guidance, 0, "cpu")
    images, labels = generate(range(60))
    assert images.shape == (60, 2, 2, 3) and images.dtype == np.uint8 and labels is not None
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    right = IMAGES.log_posterior(x, CLEAN).argmax(1).numpy() == labels
    assert right.mean() > 0.85, right.mean()
    cost = generate.evaluations
    factor = 1 if mode == "none" else 2
    assert (cost.network, cost.classifier) == (60 * factor * STEPS[name], 60 * STEPS[name] * (mode == "both"))


def test_the_steps_outside_of_the_interval_cost_half() -> None:
    low, high = LEVELS[60].edm_sigma, LEVELS[30].edm_sigma
    generate = make_generator(
        Models(network()),
        SamplerOptions(name="euler", steps="100"),
        GuidanceOptions(mode="cfg", cfg_scale=2.0, interval=(low, high)),
        0,
        "cpu",
    )
    generate(range(3))
    assert generate.evaluations.network == 3 * (100 + 30)


def test_a_batch_does_not_remember_the_one_before() -> None:
    """Momentum is of one batch's steps: image i does not depend on what was made earlier."""
    guidance = GuidanceOptions(mode="cfg", cfg_scale=3.0, apg_momentum=-0.5, apg_eta=0.0, apg_norm=1.0)
    generate = make_generator(Models(network()), SamplerOptions("euler", "6"), guidance, 0, "cpu")
    first, _ = generate(range(5))
    generate(range(5, 10))
    again, _ = generate(range(5))
    assert (first == again).all()
