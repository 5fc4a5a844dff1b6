"""What the dry run says where memory does not suffice; the dry run itself is in tests/distributed."""

import pytest
import torch

from dist_diffusion.config.resolve import resolve
from dist_diffusion.config.schema import DataOptions, DiffusionRecipe
from dist_diffusion.errors import ConfigError
from dist_diffusion.tasks.build import build
from dist_diffusion.training.rehearsal import black, within_memory

CPU = torch.device("cpu")


def test_a_lack_of_memory_is_the_recipes_matter() -> None:
    words = r"does not fit in the memory of cuda:1: tried to allocate 2 GiB\. Lower train"
    with pytest.raises(ConfigError, match=words), within_memory(torch.device("cuda", 1)):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB.\nmore words")


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), within_memory(CPU):
        raise ZeroDivisionError


def test_its_batch_is_one_that_the_task_takes() -> None:
    recipe = resolve(DiffusionRecipe(data=DataOptions(image_size=16)), num_classes=3)
    task = build(recipe, CPU)
    batch = black(recipe, task, range(4, 7), CPU)
    assert batch.images.shape == (3, 3, 16, 16) and batch.images.dtype == torch.uint8
    made = task.loss(lambda x, time, labels, low_res=None: torch.zeros(3, 6, 16, 16, requires_grad=True), batch)
    assert made.loss.isfinite()
