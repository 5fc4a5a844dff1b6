"""Checksums of replicas."""

import torch

from dist_diffusion.engine.drift import checksums, differences

NAMES = ["a", "b"]


def test_one_flipped_bit_changes_a_checksum() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        module = torch.nn.Linear(5, 3).to(dtype)
        before = checksums(module)
        integers = {2: torch.int16, 4: torch.int32}[module.weight.element_size()]
        module.weight.data.view(integers)[1, 2] ^= 1
        after = checksums(module)
        assert before[0] != after[0] and before[1] == after[1]


def test_nan_equals_itself() -> None:
    module = torch.nn.Linear(2, 2)
    module.weight.data.fill_(float("nan"))
    assert checksums(module) == checksums(module)


def test_the_ranks_that_are_not_as_most_are_named() -> None:
    places = ["cuda:0 of x", "cuda:1 of x", "cuda:0 of y"]
    assert differences([[1, 2]] * 3, places, NAMES) is None
    message = differences([[1, 2], [1, 3], [1, 2]], places, NAMES)
    assert message == "rank 1 (cuda:1 of x) from the other 2, first in b"
    message = differences([[1, 2], [1, 3]], places, NAMES)
    assert message is not None and message.startswith("rank 1 ") and "may be the other side" in message
