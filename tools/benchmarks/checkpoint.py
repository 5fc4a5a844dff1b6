"""Checkpoints against bare copies, writes and reads and DeepSpeed's own; bytes of state against the formula."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ranks import NUM_RANKS, report_of
from benchmarks.state_bytes import LAYOUTS, Layout, formula, gradients, network_sizes
from benchmarks.timing import Row

MIB = 2**20


def bench_checkpoint(seconds: float, threads: int, folder: Path | None) -> list[Row]:
    """All rows; `folder` is where the checkpoints are written, and removed again."""
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=folder) as place:
        found = report_of("checkpoint_ranks", NUM_RANKS, threads, place, str(seconds))
    return [*state_rows(found["state"]), *save_rows(found["saves"], found["bytes"]), *resume_rows(found["resumes"])]


def state_rows(found: list[Any]) -> list[Row]:
    """Of each layout, the largest rank's bytes."""
    return [row for layout, ranks in zip(LAYOUTS, found, strict=True) for row in layout_rows(layout, ranks)]


def layout_rows(layout: Layout, ranks: list[list[int]]) -> list[Row]:
    """Between two steps, and between two micro-batches of a step."""
    sizes = network_sizes()
    between_steps = sum(formula(layout, sizes, NUM_RANKS).values())
    expected = {"between steps": between_steps, "with gradients": between_steps + gradients(layout, sizes, NUM_RANKS)}
    title = f"state of a rank, {layout.title}"
    return [
        bytes_row(f"{title}, {when}; peer: formula", [rank[i] for rank in ranks], expected[when])
        for i, when in enumerate(expected)
    ]


def bytes_row(name: str, ours: list[int], peer: float) -> Row:
    """MiB: the most, and the least and most."""
    spread = (min(ours) / MIB, max(ours) / MIB)
    return Row(name, max(ours) / MIB, peer / MIB, spread, (peer / MIB,) * 2, unit="MiB", less_is_better=True)


def save_rows(taken: dict[str, list[list[float]]], sizes: dict[str, int]) -> list[Row]:
    """How long the loop waits, how long the commit takes, and how much is written."""
    blocked, done = ({name: [pair[i] for pair in pairs] for name, pairs in taken.items()} for i in (0, 1))
    copy, deepspeed = "bare copy of the same bytes", "DeepSpeed's save_checkpoint"
    return [
        time_row(f"a save blocks the loop; peer: {copy}", blocked["ours"], blocked["bare"]),
        time_row(f"a start's first save blocks the loop; peer: {copy}", blocked["first"], blocked["bare"]),
        time_row(f"a save blocks the loop; peer: {deepspeed}", blocked["ours"], blocked["deepspeed"]),
        time_row(f"a save until committed; peer: {copy}, write, fsync", done["ours"], done["bare"]),
        time_row(f"a save until committed; peer: {deepspeed}, fsync", done["ours"], done["deepspeed"]),
        throughput_row(f"a save until committed; peer: {copy}, write, fsync", sizes["ours"], done),
        bytes_row(f"bytes of a save; peer: {deepspeed}", [sizes["ours"]], sizes["deepspeed"]),
    ]


def resume_rows(taken: dict[str, list[float]]) -> list[Row]:
    """What was saved lies in the page cache."""
    return [
        time_row("resume, verified; peer: bare read of the same bytes", taken["ours"], taken["read"]),
        time_row("resume, verified; peer: bare read and sha256 of the same bytes", taken["ours"], taken["hash"]),
        time_row("resume, verified; peer: DeepSpeed's load_checkpoint", taken["ours"], taken["deepspeed"]),
    ]


def time_row(name: str, ours: list[float], peer: list[float]) -> Row:
    """Milliseconds."""
    mine, theirs = ([1000 * seconds for seconds in taken] for taken in (ours, peer))
    medians = (statistics.median(mine), statistics.median(theirs))
    return Row(name, *medians, (min(mine), max(mine)), (min(theirs), max(theirs)), unit="ms", less_is_better=True)


def throughput_row(name: str, size: int, taken: dict[str, list[float]]) -> Row:
    """MiB a second, of all ranks together."""
    mine, theirs = ([size / MIB / seconds for seconds in taken[which]] for which in ("ours", "bare"))
    medians = (statistics.median(mine), statistics.median(theirs))
    return Row(name, *medians, (min(mine), max(mine)), (min(theirs), max(theirs)), unit="MiB/s")
