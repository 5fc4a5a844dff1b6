"""Fine-tuning: what a new run takes over from another model, what it makes anew, and what it refuses."""

import dataclasses
from typing import Any

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import (
    ClassifierRecipe,
    DataOptions,
    DiffusionRecipe,
    SuperResolutionRecipe,
    TrainRecipe,
)
from dist_diffusion.diffusion.options import DiffusionOptions, ObjectiveOptions
from dist_diffusion.errors import CheckpointError
from dist_diffusion.models.build import build
from dist_diffusion.models.options import ClassifierOptions, SuperResolutionOptions, UNetOptions
from dist_diffusion.training.initial import LABELS, Initial, LabelRows, Rows, adapt_labels, adapted, kept_rows
from dist_diffusion.weights.load import LoadedModel

CLASSES = ["cat", "dog", "owl"]
SMALL: dict[str, Any] = {
    "channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": (4,),
    "num_head_channels": 32,
}


def unet(num_classes: int = 3, p_uncond: float = 0.0, size: int = 8, **model: Any) -> TrainRecipe:
    options = UNetOptions(**{**SMALL, "num_classes": 0 if not num_classes else None, **model})
    objective = ObjectiveOptions(p_uncond=p_uncond)
    return resolve(DiffusionRecipe(data=DataOptions(image_size=size), model=options, objective=objective), num_classes)


def classifier(num_classes: int = 3, size: int = 8, **model: Any) -> TrainRecipe:
    options = ClassifierOptions(**{**SMALL, **model})
    return resolve(ClassifierRecipe(data=DataOptions(image_size=size), model=options), num_classes)


def trained(recipe: TrainRecipe, classes: list[str] | None = None, seed: int = 0) -> LoadedModel:
    """A network none of whose tensors is a fresh network's."""
    torch.manual_seed(seed)
    module = build(recipe.model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    info: dict[str, object] = {} if classes is None else {"classes": classes}
    return LoadedModel(module.eval(), recipe, "old.safetensors", info)


def started(initial: Initial, recipe: TrainRecipe) -> torch.nn.Module:
    torch.manual_seed(1)
    module = build(recipe.model).eval()
    initial.fill(module, lambda text: None)
    assert not initial.tensors, "what was copied is let go"
    return module


def other_tensors(source: LoadedModel, now: torch.nn.Module) -> list[str]:
    old = source.module.state_dict()
    return [name for name, tensor in now.state_dict().items() if name not in old or not torch.equal(tensor, old[name])]


def inputs(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2)), torch.tensor([5.0, 800.0])


def test_the_same_classes_take_everything_over() -> None:
    source = trained(unet(p_uncond=0.1), CLASSES)
    initial = adapted(source, unet(p_uncond=0.2), CLASSES)
    assert initial.notes == ["starting from the weights of old.safetensors"]
    assert other_tensors(source, started(initial, unet(p_uncond=0.2))) == []


ROWS = torch.tensor([[1.0, 2.0], [3.0, 6.0], [10.0, 20.0]])


MEAN = [14 / 3, 28 / 3]


@pytest.mark.parametrize(
    ("before", "now", "rows", "expected", "said"),
    [
        (LabelRows(3, False), LabelRows(3, False), [0, 1, 2], ROWS.tolist(), []),
        (LabelRows(2, True), LabelRows(2, False), [0, 1], [[1, 2], [3, 6]], ["null row is left out"]),
        (LabelRows(2, True), LabelRows(3, True), [None] * 3, [[2, 4]] * 3 + [[10, 20]], ["each of the 3 rows"]),
        (LabelRows(2, True), LabelRows(1, False), [None], [[2, 4]], ["mean of the trained ones", "is left out"]),
        (LabelRows(3, False), LabelRows(2, True), [None] * 2, [MEAN] * 3, ["other classes", "row is added"]),
        (LabelRows(3, False), LabelRows(3, True), [0, 1, 2], [*ROWS.tolist(), MEAN], ["null row is added"]),
        (LabelRows(3, False), LabelRows(3, False), [2, None, 0], [[10, 20], MEAN, [1, 2]], ["2 of the 3 rows are"]),
        (LabelRows(3, False), LabelRows(2, False), [1, 0], [[3, 6], [1, 2]], ["2 of the 2 rows are those"]),
    ],
)
def test_label_rows(before: LabelRows, now: LabelRows, rows: Rows, expected: list, said: list[str]) -> None:
    given = {LABELS: ROWS, "time_embed.2.bias": torch.zeros(2), "x": torch.ones(1)}
    tensors, notes = adapt_labels(given, before, now, rows)
    torch.testing.assert_close(tensors.pop(LABELS), torch.tensor(expected, dtype=torch.float32))
    assert tensors == {name: tensor for name, tensor in given.items() if name != LABELS}
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


def test_classes_are_known_by_name_and_else_by_number() -> None:
    assert kept_rows(3, 3, CLASSES, ["owl", "ant", "cat"]) == [2, None, 0]
    assert kept_rows(3, 3, CLASSES, CLASSES) == [0, 1, 2] == kept_rows(3, 3, None, ["x", "y", "z"])
    assert kept_rows(3, 2, None, ["x", "y"]) == [None, None] == kept_rows(0, 2, None, ["x", "y"])
    assert kept_rows(3, 0, CLASSES, CLASSES) == []


def test_other_names_are_other_classes_and_unknown_ones_are_told() -> None:
    others = adapted(trained(unet(), CLASSES), unet(), ["ant", "bee", "fly"])
    assert any("other classes" in note for note in others.notes)
    assert len(others.tensors[LABELS].unique(dim=0)) == 1
    unknown = adapted(trained(unet()), unet(), CLASSES)
    assert any("does not name its 3 classes" in note for note in unknown.notes)
    assert len(unknown.tensors[LABELS].unique(dim=0)) == 3
    unlabelled = adapted(trained(unet(0), ["cat"]), unet(0), ["dog"])
    assert unlabelled.notes == ["starting from the weights of old.safetensors"]


def test_labels_given_to_an_unconditional_network_leave_it_as_it_was() -> None:
    source, recipe = trained(unet(0)), unet(p_uncond=0.1)
    now = started(adapted(source, recipe, CLASSES), recipe)
    x, time = inputs()
    assert torch.equal(now(x, time, torch.tensor([1, 3])), source.module(x, time, None))


@pytest.mark.parametrize("p_uncond", [0.0, 0.1])
def test_labels_taken_away_leave_the_unlabelled_network(p_uncond: float) -> None:
    """With a null label that is its output; without, what a row at the classes' mean gives."""
    source, recipe = trained(unet(p_uncond=p_uncond), CLASSES), unet(0)
    now = started(adapted(source, recipe, ["any"]), recipe)
    if not p_uncond:
        rows = source.module.get_parameter(LABELS)
        rows.data[0] = rows.data.mean(dim=0)
    x, time = inputs()
    label = torch.tensor([3, 3] if p_uncond else [0, 0])
    torch.testing.assert_close(now(x, time, None), source.module(x, time, label), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifier_of_other_classes_prefers_none_of_them(pool: str) -> None:
    """Also where its run has the seed of the one before, whose fresh last layer was the trained one's beginning."""
    source, recipe = trained(classifier(pool=pool), CLASSES), classifier(5, pool=pool)
    initial = adapted(source, recipe, list("abcde"))
    now = started(initial, recipe)
    new = other_tensors(source, now)
    assert [name.rpartition(".")[2] for name in new] == ["weight", "bias"]
    assert any(f"{new[0].rpartition('.')[0]}: other classes" in note for note in initial.notes)
    assert torch.equal(now(*inputs()), torch.zeros(2, 5))


@pytest.mark.parametrize("pool", ["attention", "spatial"])
def test_a_classifier_keeps_the_logits_of_classes_that_it_knows(pool: str) -> None:
    source, recipe = trained(classifier(pool=pool), CLASSES), classifier(2, pool=pool)
    now = started(adapted(source, recipe, ["owl", "ant"]), recipe)
    logits, before = now(*inputs()), source.module(*inputs())
    torch.testing.assert_close(logits[:, 0], before[:, 2])
    assert torch.equal(logits[:, 1], torch.zeros(2))


def test_weights_that_are_not_finite_are_refused() -> None:
    source = trained(unet(), CLASSES)
    with torch.no_grad():
        source.module.get_parameter("out.2.bias")[1] = torch.nan
    with pytest.raises(CheckpointError, match=r"old\.safetensors holds values that are not finite, in out\.2\.bias"):
        adapted(source, unet(), CLASSES)


@pytest.mark.parametrize("pool", ["attention", "spatial"])
def test_a_classifier_of_the_same_classes_keeps_its_last_layer(pool: str) -> None:
    source = trained(classifier(pool=pool), CLASSES)
    recipe = classifier(pool=pool)
    assert other_tensors(source, started(adapted(source, recipe, CLASSES), recipe)) == []


def test_another_image_size_is_told_where_the_network_is_the_same() -> None:
    source, recipe = trained(unet(), CLASSES), unet(size=16, attention_resolutions=(8,), dropout=0.1)
    initial = adapted(source, recipe, CLASSES)
    told = "\n".join(initial.notes)
    assert "model.image_size: 8 -> 16" in told
    assert "model.dropout: 0.0 -> 0.1" in told
    assert other_tensors(source, started(initial, recipe)) == []


def test_what_the_weights_were_trained_to_predict_is_told() -> None:
    recipe = dataclasses.replace(unet(), diffusion=DiffusionOptions(schedule="cosine", prediction="v"))
    told = "\n".join(adapted(trained(unet(), CLASSES), recipe, CLASSES).notes)
    assert "diffusion.schedule: linear -> cosine" in told
    assert "diffusion.prediction: eps -> v" in told


def test_a_low_resolution_of_another_size_is_told() -> None:
    def upsampler(low_res_size: int) -> TrainRecipe:
        options = SuperResolutionOptions(**SMALL, low_res_size=low_res_size)
        return resolve(SuperResolutionRecipe(data=DataOptions(image_size=8), model=options), 3)

    initial = adapted(trained(upsampler(4), CLASSES), upsampler(2), CLASSES)
    assert any("model.low_res_size: 4 -> 2" in note for note in initial.notes)


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (unet(channels=64, num_head_channels=64), ["model.channels: 32 -> 64", "model.num_head_channels: 32 -> 64"]),
        (unet(scale_shift_norm=False), ["model.scale_shift_norm: True -> False"]),
        (unet(size=16), ["model.attention_resolutions: 1/2 of image_size -> nowhere"]),
        (unet(new_attention_order=True), ["model.new_attention_order"]),
        (classifier(), ["is of task diffusion, this recipe of classifier"]),
    ],
)
def test_another_network_is_refused_by_key(recipe: TrainRecipe, parts: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"init_from=old\.safetensors") as caught:
        adapted(trained(unet(), CLASSES), recipe, CLASSES)
    for part in parts:
        assert part in str(caught.value)


def test_a_pool_that_knows_its_image_size_refuses_another() -> None:
    source = trained(classifier(), CLASSES)
    with pytest.raises(CheckpointError, match=r"out\.2\.positional_embedding \(64, 17\), expected \(64, 65\)"):
        adapted(source, classifier(size=16, attention_resolutions=(8,)), CLASSES)
