"""The super-resolution task and its recipe: what the network is given, and what is refused."""

from pathlib import Path

import pytest
import torch

from dist_diffusion.config import load
from dist_diffusion.config.checks import check_train
from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import SuperResolutionRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.models.build import build as build_model
from dist_diffusion.models.options import SuperResolutionOptions
from dist_diffusion.tasks.build import build
from dist_diffusion.tasks.task import TaskBatch, to_unit_range

TEXT = """
task: super_resolution
run_dir: r
data: {shards: s, image_size: 8}
model: {low_res_size: 4, channels: 32, num_res_blocks: 1, channel_mult: [1, 2], attention_resolutions: []}
"""


def recipe(folder: Path, *overrides: str) -> SuperResolutionRecipe:
    (folder / "a.yaml").write_text(TEXT)
    found = load.load_train(str(folder / "a.yaml"), overrides)
    assert isinstance(found, SuperResolutionRecipe)
    return found


def test_the_recipe_survives_its_checkpoint(tmp_path: Path) -> None:
    resolved = resolve(recipe(tmp_path), num_classes=3)
    assert isinstance(resolved.model, SuperResolutionOptions)
    assert load.from_dict(load.to_dict(resolved), "here") == resolved


def test_the_network_is_given_the_means_of_the_clean_pixels(tmp_path: Path) -> None:
    resolved = resolve(recipe(tmp_path), num_classes=3)
    task = build(resolved, torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawn = {d.name: torch.stack([d.at(0, j) for j in range(2)]) for d in task.draws}
    torch.manual_seed(0)
    network, given = build_model(resolved.model), []

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        given.append(inputs)
        return network(*inputs)

    made = task.loss(forward, TaskBatch(images, torch.tensor([0, 2]), drawn))
    x_t, _, labels, low_res = given[0]
    means = to_unit_range(images).reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    torch.testing.assert_close(low_res, means)
    assert x_t.shape == (2, 3, 8, 8) and labels.tolist() == [0, 2]
    made.loss.backward()
    # The output begins at zero, so only its own weights learn at first.
    assert network.out[2].weight.grad.abs().sum() > 0


def test_the_network_sees_the_smaller_image(tmp_path: Path) -> None:
    network = build_model(resolve(recipe(tmp_path), num_classes=3).model)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x, time, labels = torch.randn(1, 3, 8, 8), torch.tensor([5.0]), torch.tensor([1])
    one, other = (network(x, time, labels, torch.full((1, 3, 4, 4), value)) for value in (-0.5, 0.5))
    assert (one - other).abs().max() > 1e-3
    # A flat image is as flat when it is enlarged, whatever its size was.
    torch.testing.assert_close(network(x, time, labels, torch.full((1, 3, 2, 2), 0.5)), other)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.low_res_size=8", r"model\.low_res_size=8: expected 1 to 7, less than data\.image_size=8"),
        ("model.low_res_size=0", r"model\.low_res_size=0: expected 1 to 7"),
        ("preview.num_images=4", r"preview\.num_images: a super-resolution model has no images"),
    ],
)
def test_what_a_recipe_cannot_ask_for(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_train(recipe(tmp_path, override), world_size=1)
    check_train(recipe(tmp_path), world_size=1)


def test_other_tasks_know_no_smaller_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key model\.low_res_size"):
        recipe(tmp_path, "task=diffusion")
