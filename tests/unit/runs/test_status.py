import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dist_diffusion.errors import PLEASE_REQUEUE, ConfigError, StorageError
from dist_diffusion.runs import verdict as verdicts
from dist_diffusion.runs.lease import Owner
from dist_diffusion.runs.rows import last_row
from dist_diffusion.runs.status import Status, read_status
from dist_diffusion.runs.verdict import Verdict
from dist_diffusion.storage import committed, publish

NOW = 1_900_000_000.0
HERE = Owner.of_this_process({"SLURM_JOB_ID": "12"})
RECIPE = """
task: diffusion
train: {steps: 1000, global_batch: 24}
checkpoint: {every: 100, best: null}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has begun."""
    (tmp_path / "config.yaml").write_text(RECIPE)
    environment = {"world_size": 4, "device": "cuda:0", "launch_id": "12.0"}
    publish.write_json(str(tmp_path / "environment.json"), environment)
    return tmp_path


def commit(run: Path, step: int, age_s: float = 0.0) -> Path:
    folder = committed.stage(str(run / "checkpoints"), f"step-{step:09d}", committed.new_attempt())
    publish.write_bytes(os.path.join(folder, "rank-00000.safetensors"), bytes(1000))
    committed.mark(folder, committed.describe(folder, ["rank-00000.safetensors"]), {"step": step})
    os.utime(os.path.join(folder, committed.MARKER), (NOW - age_s, NOW - age_s))
    return Path(folder)


def hold(run: Path, owner: Owner, age_s: float = 3.0) -> None:
    path = run / "lease.json"
    publish.write_json(str(path), {"owner": asdict(owner), "token": "t", "counter": 7})
    os.utime(path, (NOW - age_s, NOW - age_s))


def log(run: Path, *rows: dict, name: str = "metrics", torn: str = "") -> None:
    (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def status(run: Path) -> Status:
    return read_status(str(run), HERE, NOW)


def contents(run: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*") if path.is_file()}


def test_a_run_before_its_first_row_and_commit(run: Path) -> None:
    found = status(run)
    assert (found.task, found.step, found.steps, found.images) == ("diffusion", 0, 1000, 0)
    assert (found.world_size, found.device, found.launch_id) == (4, "cuda:0", "12.0")
    nothing = (found.loss, found.eta_s, found.last_commit, found.best, found.lease, found.verdict, found.mirror)
    assert nothing == (None,) * 7 and found.commits == []


def test_a_run_in_the_middle_and_nothing_is_changed(run: Path) -> None:
    log(run, {"step": 1}, {"step": 240, "loss": 0.5, "loss_mean": 0.6, "images_per_s": 48.0, "skipped_steps": 2})
    for step, age_s in ((100, 500.0), (200, 40.0)):
        commit(run, step, age_s)
    hold(run, HERE)
    (run / ".tmp-1-left").write_bytes(bytes(500))
    before = contents(run)
    found = status(run)
    assert (found.step, found.images, found.loss, found.loss_mean) == (240, 5760, 0.5, 0.6)
    assert (found.images_per_s, found.eta_s, found.skipped_steps) == (48.0, 760 * 24 / 48, 2)
    assert found.commits == [100, 200] and found.last_commit is not None
    last = found.last_commit
    assert (last.step, last.age_s, last.bytes, last.marker_verifies) == (200, 40.0, 1000, True)
    assert found.disk_used_bytes == sum(len(data) for data, _ in before.values())
    assert found.disk_free_bytes and contents(run) == before


def test_a_commit_later_than_the_last_row_counts(run: Path) -> None:
    log(run, {"step": 1, "loss": 1.0})
    commit(run, 50)
    assert status(run).step == 50


def test_a_damaged_marker_is_told(run: Path) -> None:
    marker = commit(run, 100) / committed.MARKER
    marker.write_bytes(marker.read_bytes().replace(b'"size": 1000', b'"size": 1001'))
    found = status(run).last_commit
    assert found and (found.step, found.marker_verifies, found.bytes) == (100, False, None)


def elsewhere() -> Owner:
    return replace(HERE, host="node7", boot_id="another")


@pytest.mark.parametrize(
    ("owner", "age_s", "alive", "may_be_running"),
    [
        (lambda: HERE, 500.0, True, True),
        (lambda: replace(HERE, start_time=HERE.start_time - 1), 1.0, False, False),
        (lambda: replace(HERE, boot_id="before the reboot"), 1.0, False, False),
        (lambda: replace(HERE, pid_namespace="pid:[1]", start_time=1), 1.0, None, True),
        (elsewhere, 3.0, None, True),
        (elsewhere, 61.0, None, False),
        (lambda: replace(HERE, boot_id=""), 3.0, None, True),
    ],
)
def test_whether_the_owner_lives_is_said_where_it_can_be_told(
    run: Path, owner: Callable[[], Owner], age_s: float, alive: bool | None, may_be_running: bool
) -> None:
    log(run, {"step": 10, "images_per_s": 1.0})
    hold(run, owner(), age_s)
    found = status(run)
    assert found.lease is not None
    assert (found.lease.alive, found.lease.may_be_running, found.lease.counter_age_s) == (alive, may_be_running, age_s)
    assert (found.lease.host, found.lease.pid, found.lease.job) == (owner().host, HERE.pid, "12")
    assert (found.eta_s is not None) is may_be_running


@pytest.mark.parametrize(("launch_id", "earlier"), [("12.0", False), ("11.0", True)])
def test_a_verdict_says_what_it_means_and_whose_it_is(run: Path, launch_id: str, earlier: bool) -> None:
    written = Verdict(
        PLEASE_REQUEUE, "stopped at step 7 as asked", 2, 7, launch_id, host="node1", log="logs/rank-2.log"
    )
    verdicts.record(str(run / "exit.json"), written)
    found = status(run).verdict
    assert found is not None
    assert {key: value for key, value in asdict(found).items() if key not in ("meaning", "earlier_launch")} == asdict(
        written
    )
    assert (found.meaning, found.earlier_launch) == ("please requeue", earlier)


def test_the_best_is_among_the_commits_that_are_there(run: Path) -> None:
    for step in (100, 200, 300):
        commit(run, step)
    rows = [(50, 0.1), (100, 0.3), (200, 0.2), (300, 0.2), (300, None)]
    log(
        run, *({"step": step, "accuracy": value} for step, value in rows), name="validation", torn='{"step": 200, "accu'
    )
    assert status(run).best is None
    for best_is, expected in (("lowest", (300, 0.2)), ("highest", (100, 0.3))):
        chosen = f"{{every: 100, best: accuracy, best_is: {best_is}, mirror: s3://b/run}}"
        (run / "config.yaml").write_text(RECIPE.replace("{every: 100, best: null}", chosen))
        found = status(run)
        assert found.best and (found.best.step, found.best.value) == expected
        assert found.mirror == "s3://b/run"
    (run / "config.yaml").write_text(RECIPE.replace("null", "another_column"))
    assert status(run).best is None


@pytest.mark.parametrize("torn", ["", '{"step": 9', '{"step": 9}', "\n", "garbage\n", "[1]\n\n"])
@pytest.mark.parametrize("num_rows", [1, 5000])
def test_the_last_whole_row_is_read_from_the_end(tmp_path: Path, torn: str, num_rows: int) -> None:
    log(tmp_path, *({"step": step, "text": "x" * 50} for step in range(num_rows)), torn=torn)
    found = last_row(str(tmp_path / "metrics.jsonl"))
    assert found and found["step"] == num_rows - 1


def test_a_row_longer_than_a_block_and_files_without_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    assert last_row(path) is None
    for torn, expected in (("", None), ('{"step"', None), ("x" * 100_000 + "\n", None)):
        log(tmp_path, torn=torn)
        assert last_row(path) is expected
    log(tmp_path, {"step": 1}, {"step": 2, "replaced": ["x" * 300_000]}, torn='{"step": 3, ')
    assert last_row(path) == {"step": 2, "replaced": ["x" * 300_000]}


def test_of_a_large_file_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    # Sparse: reading all of it would take the memory of a large machine.
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)
        stream.seek(0, os.SEEK_END)
        stream.write(b'\n{"step": 4}\n')
    assert last_row(str(path)) == {"step": 4}


@pytest.mark.parametrize(
    "config", ["", "- a\n", "task: diffusion\n", "task: [\n", "\x00", RECIPE.replace("1000", "many"), "a: b"]
)
def test_a_foreign_directory_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ConfigError, match=f"{tmp_path} is no run directory: its config.yaml is not the recipe"):
        status(tmp_path)


def test_where_no_run_has_begun(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"{tmp_path} has no config.yaml: it is no run directory, or no run has begun"
    ):
        status(tmp_path)
    with pytest.raises(ConfigError, match="absent: no such run directory"):
        status(tmp_path / "absent")


def test_a_foreign_verdict_is_named(run: Path) -> None:
    (run / "exit.json").write_text('{"status": 1}')
    with pytest.raises(StorageError, match=r"exit\.json is not a verdict"):
        status(run)
