"""The benchmark's arithmetic, and that it times nothing that it has not compared."""

import json
import sys
from pathlib import Path

import bench
import pytest
import torch
from benchmarks import setting
from benchmarks.timing import MIN_ROUNDS, Row, alternate, compared, table

from dist_diffusion.errors import InternalError


def test_every_candidate_runs_once_a_round_in_changing_order() -> None:
    calls: list[str] = []
    taken = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, seconds=0.0)  # type: ignore[misc]
    assert {name: len(times) for name, times in taken.items()} == dict.fromkeys("abc", MIN_ROUNDS)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == MIN_ROUNDS + 1, "one round is not counted"
    assert all(sorted(names) == list("abc") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1


def test_a_row_has_medians_spreads_and_their_ratio() -> None:
    row = compared("x", 12, ours=[1.0, 2.0, 3.0], peer=[6.0, 4.0, 5.0])
    assert row == Row("x", ours=6.0, peer=2.4, ours_spread=(4.0, 12.0), peer_spread=(2.0, 3.0))
    content = row.to_json()
    assert content["ratio"] == pytest.approx(2.5) and content["unit"] == "img/s"
    assert {"name", "ours", "peer"} <= set(content) and "2.50" in table([row])


def test_both_networks_are_of_one_size_and_told_apart() -> None:
    sizes = [sum(p.numel() for p in setting.our_empty_network(options).parameters()) for options in setting.NETWORKS]
    assert [size // 10**6 for size in sizes] == [18, 18]
    assert [setting.title(options) for options in setting.NETWORKS] == [
        "attention at 32, 16, 8 px",
        "attention at 16, 8 px",
    ]


def run_bench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[float]:
    """Runs the tool on a stand-in subcommand; the seconds that it was asked to measure for."""
    measured: list[float] = []

    def measure(seconds: float) -> list[Row]:
        measured.append(seconds)
        return [compared("x", 1, [1.0], [2.0])]

    monkeypatch.setitem(bench.SUBCOMMANDS, "model", (measure, "a stand-in"))
    monkeypatch.setattr(sys, "argv", ["bench.py", "model", *arguments])
    try:
        bench.main()
    except SystemExit as ended:
        assert ended.code == 2 and not measured, "it ends before it measures"
    return measured


def test_the_rows_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert run_bench(monkeypatch, "--seconds", "3", "--json", str(path)) == [3.0]
    assert [row["ratio"] for row in json.loads(path.read_text())] == [2.0]


@pytest.mark.parametrize("place", ["absent/rows.json", "."])
def test_a_file_that_cannot_be_written_is_told_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, place: str
) -> None:
    assert not run_bench(monkeypatch, "--json", str(tmp_path / place))
    assert f"--json {tmp_path / place} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_threads_are_at_least_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: str
) -> None:
    assert not run_bench(monkeypatch, "--threads", threads)
    assert "--threads" in capsys.readouterr().err


def test_networks_that_differ_are_not_compared() -> None:
    with pytest.raises(InternalError, match="more than"):
        setting.check("forward", torch.ones(3), torch.zeros(3), 0.5)
    with pytest.raises(InternalError):
        setting.check("forward", torch.full((3,), float("nan")), torch.zeros(3), 0.5)
