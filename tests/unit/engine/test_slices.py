"""Slices written by one layout are read by another, element by element."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dist_diffusion.engine import slices as slices_module
from dist_diffusion.engine.layout import Segment, Shard, clear_padding
from dist_diffusion.engine.slices import Slices, Snapshot, rank_file, refuse_non_finite, write
from dist_diffusion.errors import CheckpointError, NonFiniteError

A, B = torch.arange(7.0), torch.arange(100.0, 105.0)


def cut(tmp_path: Path, bounds: list[int]) -> None:
    """A (7) and B (5) laid end to end, cut at `bounds` into ranks, as ZeRO 1 does."""
    line = torch.cat([A, B])
    edges = [0, *bounds, 12]
    for rank, (first, last) in enumerate(pairwise(edges)):
        segments = []
        for name, begin, size in (("a", 0, 7), ("b", 7, 5)):
            low, high = max(first, begin), min(last, begin + size)
            if low < high:
                segments.append(Segment(name, low - begin, low - first, high - low))
        write(Snapshot([segments], {"0.fp32": line[first:last].clone()}), str(tmp_path / rank_file(rank)))


@pytest.mark.parametrize("bounds", [[], [7], [3], [2, 4, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
def test_any_cut_gives_every_slice_back(tmp_path: Path, bounds: list[int]) -> None:
    cut(tmp_path, bounds)
    ranks = list(reversed(range(len(bounds) + 1)))
    assert torch.equal(Slices(str(tmp_path), ranks).full("a", "fp32", [7, 1]), A.view(7, 1))
    slices = Slices(str(tmp_path), ranks)
    for start in range(5):
        for stop in range(start + 1, 6):
            out = torch.empty(stop - start)
            slices.fill(out, "b", "fp32", start)
            assert torch.equal(out, B[start:stop])


def test_a_gap_is_named(tmp_path: Path) -> None:
    cut(tmp_path, [4])
    with pytest.raises(CheckpointError, match="lacks 3 of 7 elements of a's fp32"):
        Slices(str(tmp_path), [0]).full("a", "fp32", [7])


def test_what_is_not_finite_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_module, "PIECE", 2)
    segments = [[Segment("a", 0, 0, 3), Segment("b", 0, 3, 2)]]
    largest = torch.finfo(torch.float32).max
    refuse_non_finite(Snapshot(segments, {"0.fp32": torch.full((5,), largest)}))
    for value in (float("nan"), float("inf")):
        tensor = torch.zeros(5)
        tensor[4] = value
        with pytest.raises(NonFiniteError, match="ema_0 of b is not finite"):
            refuse_non_finite(Snapshot(segments, {"0.fp32": torch.zeros(5), "0.ema_0": tensor}))


def test_padding_is_no_state() -> None:
    segments = [Segment("a", 0, 1, 3), Segment("b", 0, 6, 2), Segment("c", 4, 9, 0)]
    tensor = torch.full((12,), float("nan"))
    tensor[1:4], tensor[6:8] = 1.0, 2.0
    refuse_non_finite(Snapshot([segments], {"0.fp32": tensor}))
    clear_padding(Shard(tensor, segments))
    assert tensor.tolist() == [0, 1, 1, 1, 0, 0, 2, 2, 0, 0, 0, 0]
