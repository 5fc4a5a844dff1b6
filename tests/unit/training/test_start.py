"""What a start on a commit takes over from it, and what it refuses."""

from typing import Any

import pytest
import torch

from dist_diffusion.diffusion.timesteps import LossHistory
from dist_diffusion.errors import CheckpointError
from dist_diffusion.storage.committed import Committed
from dist_diffusion.training.start import history_from, refuse_another_network, say_other_classes


def commit(task: Any) -> Committed:
    return Committed("step-000000004", "attempt", "somewhere", {"task": task})


def test_losses_by_timestep_are_taken_over_where_the_timesteps_are_the_same() -> None:
    said: list[str] = []
    held = LossHistory.empty(5).updated(torch.tensor([3]), torch.tensor([0.5]))
    found = history_from(commit(held.to_json()), LossHistory.empty(5), said.append)
    assert found is not None and torch.equal(found.counts, held.counts) and not said
    assert history_from(commit(held.to_json()), None, said.append) is None and not said
    # Of a run that drew uniformly, or of another number of timesteps.
    for task in (None, LossHistory.empty(8).to_json()):
        fresh = LossHistory.empty(5)
        assert history_from(commit(task), fresh, said.append) is fresh
        assert "no losses of these 5 timesteps" in said.pop()


def test_the_first_label_of_another_class_is_named() -> None:
    said: list[str] = []
    say_other_classes(["a", "b"], ["a", "b"], said.append)
    assert not said
    say_other_classes(["a", "b", "c"], ["a", "c", "b"], said.append)
    assert said == ["changed since the commit: label 1 was the class b and is c now, maybe others, too"]


def test_another_network_is_refused() -> None:
    refuse_another_network("commit", {"a": (2, 3)}, {"a": (2, 3)})
    with pytest.raises(CheckpointError, match=r"a is \(2, 3\) there, \(2, 4\) in this recipe"):
        refuse_another_network("commit", {"a": (2, 3)}, {"a": (2, 4)})
    with pytest.raises(CheckpointError, match=r"b is None there"):
        refuse_another_network("commit", {"a": (2, 3)}, {"a": (2, 3), "b": (1,)})
