"""What else can happen to a run of real ranks: a slow or full disk, NaN, a hang, two jobs at once, spoilt commits."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cluster.faulty import SLOW_S
from cluster.whole import (
    EVERY,
    RECIPE,
    STEPS,
    check_it_is_the_whole,
    check_rows,
    faulty,
    uncommitted,
    verified_steps,
)
from support import (
    Launcher,
    column,
    committed_steps,
    owner_of,
    rows,
    train_arguments,
    wait_for_commit,
    wait_for_step,
    wait_until,
)

from dist_diffusion.errors import PLEASE_REQUEUE, USER_ERROR
from dist_diffusion.runs import verdict
from dist_diffusion.storage import committed

ENDLESS = [*RECIPE, "train.steps=100000"]
MIB = 2**20
FULL_S = 3
"""How long nothing at all can be written: some hundred steps."""


def test_training_goes_on_while_a_rank_is_slow_to_write(launcher: Launcher, workplace: Path, whole: Path) -> None:
    """The second write: the first is the dry run's."""
    command = [*train_arguments(workplace, "slow"), *RECIPE, "checkpoint.every=10"]
    out, _ = launcher.run(2, *command, program=faulty("slow-slices", 1, "2"))
    lines = [line for line in out.splitlines() if line.startswith(("step ", "committed step "))]
    seconds = re.fullmatch(r"committed step 10 in ([\d.]+) s", next(line for line in lines if "committed" in line))
    assert seconds is not None and float(seconds[1]) >= SLOW_S
    steps = [line for line in lines[: lines.index(seconds[0])] if line.startswith("step ")]
    assert len(steps) >= 15, "training waited for the write"
    check_it_is_the_whole(workplace / "slow", whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that holds three commits and some; it needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True, timeout=10)


def test_a_full_disk_costs_no_commit_that_stands(
    launcher: Launcher, workplace: Path, whole: Path, small_disk: Path
) -> None:
    """Too little room for a commit: it is told, a later one is made. None at all: rows wait, too, and none is lost."""
    run_dir, ballast = small_disk / "run", small_disk / "ballast"
    command = [*train_arguments(workplace, "full"), *RECIPE, f"run_dir={run_dir}"]
    log = run_dir / "logs" / "rank-0.log"
    process = launcher.start(2, *command, "train.steps=100000")
    try:
        wait_for_commit(run_dir, EVERY)
        fill(small_disk, ballast, leave=2 * MIB)
        wait_until(lambda: "failed, the one before stands" in log.read_text(), "a commit that does not fit")
        steps = verified_steps(run_dir)
        ballast.unlink()
        wait_for_commit(run_dir, steps[-1] + EVERY)
        fill(small_disk, ballast, leave=0)
        time.sleep(FULL_S)
        assert process.poll() is None, process.communicate()
        steps = verified_steps(run_dir)
        ballast.unlink()
        wait_for_commit(run_dir, steps[-1] + EVERY)
        os.kill(owner_of(run_dir), signal.SIGUSR2)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == PLEASE_REQUEUE, err
    assert re.search(r"the commit of step \d+ failed, the one before stands: .*No space left on device", out)
    assert "metrics.jsonl wait in memory, the run goes on" in out
    found = rows(run_dir)
    assert [row["step"] for row in found] == list(range(1, len(found) + 1))
    check_rows(found[:STEPS], whole)
    assert uncommitted(run_dir) == []


def fill(disk: Path, ballast: Path, leave: int) -> None:
    """All but so many bytes; what others write meanwhile may leave less."""
    with suppress(OSError), open(ballast, "wb", buffering=0) as stream:
        while (free := shutil.disk_usage(disk).free) > leave:
            stream.write(bytes(min(MIB, free - leave)))


def test_a_save_that_fails_on_one_rank_is_told_and_tried_again(
    launcher: Launcher, workplace: Path, whole: Path
) -> None:
    """As on a host whose own disk or quota is full. The write of step 6, after the dry run's and that of step 3."""
    command = [*train_arguments(workplace, "quota"), *RECIPE]
    out, _ = launcher.run(2, *command, program=faulty("full-slices", 1, "3"))
    assert re.search(r"the commit of step 6 failed, the one before stands: rank 1: .*No space left on device", out)
    assert "committed step 9 " in out
    check_it_is_the_whole(workplace / "quota", whole)


@pytest.mark.parametrize("stage", [0, 2])
def test_nan_once_is_skipped_and_for_ever_ends_the_run(stage: int, launcher: Launcher, workplace: Path) -> None:
    """On one rank, at step 5, and from step 8 on."""
    run_dir = workplace / f"nan-{stage}"
    command = [*train_arguments(workplace, run_dir.name), f"engine.zero_stage={stage}", "engine.max_nonfinite_steps=3"]
    out, err = launcher.run(2, *command, program=faulty("nan", 1, "5,8+"), code=USER_ERROR)
    assert "gradients were not finite for 3 steps in a row, up to step 10" in err
    assert err.count("dist-diffusion: ") == 1
    skipped = [int(step) for step in re.findall(r"step (\d+): gradients are not finite; the update is skipped", out)]
    assert skipped == [5, 8, 9, 10]
    found = rows(run_dir)
    assert column(found, "skipped_steps") == [0, 0, 0, 0, 1, 1, 1, 2, 3, 4]
    assert [row["step"] for row in found if row["loss"] is None or row["grad_norm"] is None] == skipped
    # A state that is not finite is never written: what is committed was looked at, on every rank, and drift too.
    assert verified_steps(run_dir) == [4, 8]
    said = verdict.read(str(run_dir / "exit.json"))
    assert said is not None and (said.code, said.step) == (USER_ERROR, 10)


def test_a_hanging_rank_is_named_and_the_run_asks_for_another_start(
    launcher: Launcher, workplace: Path, whole: Path
) -> None:
    run_dir, limit_s = workplace / "hanging", 8
    command = [*train_arguments(workplace, "hanging"), *RECIPE, f"watchdog.step_s={limit_s}"]
    process = launcher.start(2, *command, program=faulty("hang", 1, "11"))
    wait_for_step(run_dir, 10)
    start = time.monotonic()
    _, err = process.communicate(timeout=90)
    assert time.monotonic() - start < limit_s + 20
    assert process.returncode == PLEASE_REQUEUE, err
    said = verdict.read(str(run_dir / "exit.json"))
    assert said is not None and said.code == PLEASE_REQUEUE
    assert re.search(r"rank 1 on \S+ is at 'forward' of step 10", said.reason), said.reason
    # Its stacks show where.
    assert "in hang" in (run_dir / "logs" / "rank-1.log").read_text()
    launcher.run(2, *command)
    check_it_is_the_whole(run_dir, whole)


def test_of_two_jobs_that_start_at_once_one_runs(launcher: Launcher, workplace: Path, whole: Path) -> None:
    run_dir = workplace / "contested"
    command = [*train_arguments(workplace, "contested"), *ENDLESS]
    jobs = [launcher.start(2, *command) for _ in range(2)]
    try:
        wait_until(lambda: any(job.poll() is not None for job in jobs), "the end of one of them")
        (loser,) = (job for job in jobs if job.poll() is not None)
        (winner,) = (job for job in jobs if job is not loser)
        _, err = loser.communicate()
        assert loser.returncode == USER_ERROR, err
        assert f"{run_dir} is in use by process {owner_of(run_dir)} on " in err
        wait_for_step(run_dir, len(rows(run_dir)) + 5)
        os.kill(owner_of(run_dir), signal.SIGUSR2)
        _, err = winner.communicate(timeout=60)
        assert winner.returncode == PLEASE_REQUEUE, err
    finally:
        for job in jobs:
            job.kill()
    wait_until(lambda: not (run_dir / "lease.json").exists(), "the release of the lease")
    check_rows(rows(run_dir)[:STEPS], whole)


def test_torn_commits_are_named_and_the_one_before_them_is_used(
    launcher: Launcher, workplace: Path, whole: Path
) -> None:
    """Half a marker in the newest, a missing file in the one before it."""
    run_dir = Path(shutil.copytree(whole, workplace / "torn"))
    good, lacking, torn = committed.scan(str(run_dir / "checkpoints"))
    marker = Path(torn.path) / committed.MARKER
    os.truncate(marker, marker.stat().st_size // 2)
    (Path(lacking.path) / "rank-00001.safetensors").unlink()
    out, _ = launcher.run(2, *train_arguments(workplace, "torn"), *RECIPE)
    assert f"{torn.name} cannot be used: {marker} is damaged" in out
    assert f"{lacking.name} cannot be used: {lacking.path}/rank-00001.safetensors is missing" in out
    assert f"resuming at step {good.marker['step']} from {good.path}" in out
    aside = [Path(f"{commit.path}.damaged") for commit in (lacking, torn)]
    assert all(path.is_dir() for path in aside)
    for path in aside:
        shutil.rmtree(path)
    check_it_is_the_whole(run_dir, whole)


def test_a_commit_of_a_newer_format_is_left_alone(launcher: Launcher, workplace: Path, whole: Path) -> None:
    """It is not taken for a damaged one, and the one before it, which could be read, is not taken in its place."""
    run_dir = Path(shutil.copytree(whole, workplace / "newer"))
    newest = committed.scan(str(run_dir / "checkpoints"))[-1]
    content = {**newest.marker, "format": 99}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (Path(newest.path) / committed.MARKER).write_text(json.dumps({**content, "marker_sha256": checksum}))
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    arguments = [*train_arguments(workplace, "newer"), *RECIPE, f"train.steps={STEPS + 3}"]
    launcher.refused(2, arguments, newest.path, "format 99")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_what_cannot_run_is_refused_on_every_rank(launcher: Launcher, workplace: Path, whole: Path) -> None:
    (workplace / "a-file").write_text("in the way")
    diffusion, classifier = (train_arguments(workplace, "refused", recipe) for recipe in ("diffusion", "classifier"))
    launcher.refused(2, [*diffusion, f"run_dir={workplace / 'a-file' / 'run'}"], str(workplace / "a-file"))
    launcher.refused(2, [*classifier, f"run_dir={whole}"], str(whole), "task: diffusion -> classifier")
    launcher.refused(3, [*diffusion, "train.global_batch=25"], "train.global_batch=25", "3 ranks")
    assert committed_steps(whole)[-1] == STEPS and not (whole / "lease.json").exists()
    assert not (workplace / "refused").exists()
