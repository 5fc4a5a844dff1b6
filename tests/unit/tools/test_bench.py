"""The benchmark's arithmetic, and that it times nothing that it has not compared."""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import bench
import numpy as np
import pytest
import torch
from benchmarks import checkpoint, data, data_images, data_peers, options, ranks, saving, setting, state_bytes, timing
from benchmarks.data_images import ImageSet
from benchmarks.state_bytes import Layout, Sizes, formula, gradients, live_bytes
from benchmarks.timing import MIN_ROUNDS, Row, alternate, alternate_measured, compared, seconds_an_image, table
from PIL import Image

from dist_diffusion.errors import ConfigError, InternalError


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


def test_less_is_better_where_a_row_says_so() -> None:
    row = Row("memory", 200.0, 100.0, (200.0, 200.0), (100.0, 100.0), unit="MiB", less_is_better=True)
    assert row.to_json()["ratio"] == 0.5 and "MiB  0.50" in table([row])


def test_what_a_candidate_measured_of_itself_is_what_counts() -> None:
    values = iter(range(100))
    taken = alternate_measured({"a": lambda: float(next(values))}, seconds=0.0)
    assert taken == {"a": [1.0, 2.0, 3.0]}, "the first round is not counted"


def test_a_loader_is_measured_once_it_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_S", 0.05)
    monkeypatch.setattr(timing, "WINDOW_S", 0.2)

    def batches() -> Iterator[None]:
        time.sleep(0.5)
        while True:
            time.sleep(0.01)
            yield

    assert 0.001 <= seconds_an_image(batches(), batch=10) < 0.003


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

    def measure(arguments: argparse.Namespace) -> list[Row]:
        measured.append(arguments.seconds)
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


def test_made_up_images_are_the_same_everywhere_and_as_large_as_real_ones() -> None:
    def made_up(size: int, quality: int) -> list[bytes]:
        rng = np.random.default_rng(0)
        return data_images.made_up(rng, [data_images.canvas(rng, 512)], (size, size), 20, quality)

    small, squares = made_up(32, data_images.SMALL_QUALITY), made_up(256, data_images.PHOTOGRAPH_QUALITY)
    assert small == made_up(32, data_images.SMALL_QUALITY) and len(set(small)) == 20
    assert 800 < np.mean([len(file) for file in small]) < 1100, "CIFAR-10's have 920 bytes"
    assert 15_000 < np.mean([len(file) for file in squares]) < 30_000
    assert Image.open(io.BytesIO(squares[0])).size == (256, 256)


def test_real_images_are_chosen_evenly(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(5):
            (tmp_path / label / f"{i}.jpg").write_bytes(f"{label}{i}".encode())
    assert data_images.real(tmp_path, 5) == [b"a0", b"a2", b"a4", b"b1", b"b3"]
    with pytest.raises(ConfigError, match="no JPEG files"):
        data_images.real(tmp_path / "c", 5)


def test_small_images_of_another_size_are_refused(tmp_path: Path) -> None:
    file = data_images.encode(Image.new("RGB", (33, 32)), 75)
    with pytest.raises(ConfigError, match="33x32, not 32x32"):
        data_images.check_sizes(tmp_path, [file])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> data.Place:
    rng = np.random.default_rng(0)
    files = data_images.made_up(rng, [data_images.canvas(rng, 256)], (32, 32), 20, 75)
    made = data.Place(ImageSet("small", 32, 8, files, repeats=3), tmp_path_factory.mktemp("place"))
    made.make(processes=1)
    return made


def test_a_tree_names_every_image_as_often_as_said(place: data.Place) -> None:
    paths = sorted(place.tree.glob("*/*.jpg"))
    assert len(paths) == place.images.num_files == 60
    assert all(path.name.split("_")[0] == path.parent.name for path in paths)
    assert sorted(path.read_bytes() for path in paths) == sorted([*place.images.originals] * 3)
    assert len(list(place.part.glob("*/*.jpg"))) == 6


def test_the_loader_is_timed_on_the_images_that_the_peer_sees(place: data.Place) -> None:
    images, files = data.first_batch(place)
    decoded = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    assert len(files) == place.images.batch and set(files) <= set(place.images.originals)
    np.testing.assert_array_equal(images.numpy(), decoded)


def test_memory_is_that_of_this_process_and_those_it_started(place: data.Place) -> None:
    with place.loader(processes=0) as loader:
        alone = data.resident_after(loader, steps=1)
        child = subprocess.Popen(
            [sys.executable, "-c", "b = bytearray(10**8); print(flush=True); input()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            together = data.resident_after(loader, steps=1)
            child.communicate(b"\n")
    assert 90 < together - alone < 200


def test_the_bare_write_is_of_the_same_files_and_labels(place: data.Place, tmp_path: Path) -> None:
    data_peers.bare_write(place.tree, tmp_path, samples_per_shard=7, processes=2)
    found = []
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        found += [(members[name[:-3] + "cls"], members[name]) for name in members if name.endswith("jpg")]
    expected = [(path.parent.name[-1].encode(), path.read_bytes()) for path in place.tree.glob("*/*.jpg")]
    assert sorted(found) == sorted(expected)


def test_the_bare_loop_is_of_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_peers, "WARM_UP_S", 0.02)
    monkeypatch.setattr(data_peers, "WINDOW_S", 0.2)
    seconds = [data_peers.bare_decode([b""] * 3, lambda _: time.sleep(0.002), processes) for processes in (1, 3)]
    assert seconds[0] >= 0.002 and 2 < seconds[0] / seconds[1] < 4


def test_the_state_is_shared_out_as_the_stage_says() -> None:
    sizes = Sizes(all=1000, largest=300, persistent=50)

    def total(layout: Layout, world_size: int = 4) -> float:
        return sum(formula(layout, sizes, world_size).values())

    averages = state_bytes.NUM_AVERAGES * 4 * 250
    assert total(Layout(0, "fp32")) == 12_000 + averages
    assert total(Layout(1, "fp32")) == total(Layout(2, "fp32")) == 4000 + 12 * 250 + averages
    assert total(Layout(1, "bf16")) == 2000 + 12 * 250 + averages
    assert total(Layout(3, "fp32")) == 20 * 250 + 4 * 50 + 4 * 1000 + averages
    assert total(Layout(3, "bf16")) == 16 * 250 + 2 * 50 + 2 * 1000 + averages
    assert total(Layout(3, "fp32", offload=True)) - total(Layout(3, "fp32")) == 4 * 250
    found = [gradients(Layout(stage, "fp32"), sizes, 4) for stage in range(4)]
    assert found == [4000, 8000, 1000, 0]


def test_what_lives_is_counted_once_with_its_gradient() -> None:
    sparse = torch.eye(3).to_sparse()  # what has no storage is not counted
    before = live_bytes()
    weight = torch.zeros(1000, requires_grad=True)
    views = [weight.detach()[i:] for i in range(5)]
    weight.grad = torch.zeros(1000)
    after = live_bytes()
    assert sum(after[address] for address in after.keys() - before) == 8000 and len(views) == 5
    del weight, views, sparse
    assert not live_bytes().keys() - before


def test_ranks_see_the_whole_batch_once_in_micro_batches() -> None:
    batch = setting.task_batch(0)
    pieces = [piece for first in (0, 8) for piece in setting.pieces(batch, range(first, first + 8), 2)]
    assert [len(piece.images) for piece in pieces] == [2] * 8
    torch.testing.assert_close(torch.cat([piece.images for piece in pieces]), batch.images)
    torch.testing.assert_close(torch.cat([piece.draws["noise"] for piece in pieces]), batch.draws["noise"])


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(InternalError, match=r"No module named benchmarks\.absent"):
        ranks.report_of("absent", 1, 1)


def test_ranks_do_not_inherit_a_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setenv("MASTER_PORT", "1")
    environment = ranks.environment(threads=3)
    assert "MASTER_PORT" not in environment and environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(":") == [str(ranks.ROOT / "tools"), str(ranks.ROOT)]


def test_saves_are_told_in_milliseconds_and_bytes() -> None:
    taken = {name: [(0.1 * i, 0.5 * i)] * 3 for i, name in enumerate(("ours", "first", "bare", "deepspeed"), 1)}
    found = {row.name: row for row in checkpoint.save_rows(taken, {"ours": 4 * 2**20, "deepspeed": 2**20})}
    blocked = found["a save blocks the loop; peer: bare copy of the same bytes"]
    assert (blocked.ours, blocked.peer) == (100.0, pytest.approx(300.0)) and blocked.ratio == pytest.approx(3.0)
    assert found["bytes of a save; peer: DeepSpeed's save_checkpoint"].ratio == 0.25
    assert [row.ours for row in found.values() if row.unit == "MiB/s"] == [8.0]


def test_the_largest_rank_stands_for_all() -> None:
    sizes = state_bytes.network_sizes()
    expected = sum(formula(Layout(1, "fp32"), sizes, ranks.NUM_RANKS).values())
    between_steps, _ = checkpoint.layout_rows(Layout(1, "fp32"), [[round(expected), 0], [round(2 * expected), 0]])
    assert between_steps.ratio == pytest.approx(0.5) and between_steps.ours_spread[0] == pytest.approx(expected / 2**20)


def test_a_part_is_added_to_the_step_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"1 average": 0.1, "4 averages": 0.4, "drift check": 1.0, "whereabouts": 0.0, "watchdog": 0.01}
    found = {row.name.split(",")[1].split(";")[0].strip(): row for row in options.part_rows(parts, [1.1] * 3)}
    assert found["1 average"].ours == pytest.approx(1100) and found["1 average"].peer == pytest.approx(1000)
    assert found["4 averages"].ours == pytest.approx(1400)
    assert found["drift check"].ours == pytest.approx(1001), "one every 1000 steps"
    assert found["watchdog"].ours == pytest.approx(1011), "its share of a core, for as long as a step takes"
    assert "drift check, every 1000 steps: 1.000 ms a step" in capsys.readouterr().out


def test_as_many_bytes_are_written_and_read_as_the_commit_has(tmp_path: Path) -> None:
    content = torch.arange(100, dtype=torch.uint8)
    saving.bare_write(tmp_path / "file", content, 250)
    written = (tmp_path / "file").read_bytes()
    assert written == (bytes(range(100)) * 3)[:250]
    into = torch.zeros(60, dtype=torch.uint8)
    saving.bare_read([tmp_path / "file"], into)
    assert bytes(into.tolist()) == written[240:] + written[190:240]
    assert saving.num_bytes(tmp_path) == 250
