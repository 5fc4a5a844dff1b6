"""The grid that all ranks make."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from dist_diffusion.config.schema import DiffusionRecipe, PreviewOptions
from dist_diffusion.distributed.group import Group
from dist_diffusion.errors import NonFiniteError
from dist_diffusion.training import preview as module


def test_images_that_are_not_finite_on_one_rank_are_an_error_of_all(
    monkeypatch: pytest.MonkeyPatch, group: Group
) -> None:
    """The training goes on after it: a rank that alone knew would be in another collective than its peers."""

    def generate(indices: Sequence[int]) -> None:
        raise NonFiniteError(f"images {list(indices)} are not finite")

    monkeypatch.setattr(module, "load_model", lambda export, device: SimpleNamespace())
    monkeypatch.setattr(module, "make_generator", lambda *arguments: generate)
    with pytest.raises(NonFiniteError) as error:
        module.preview(DiffusionRecipe(preview=PreviewOptions(num_images=2)), "export", group)
    assert error.value.agreed
