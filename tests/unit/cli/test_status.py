"""The words of `status`, its JSON, and that it leaves everything as it is."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from support import ROOT

from dist_diffusion.cli.status import in_words
from dist_diffusion.runs.lease import Owner
from dist_diffusion.runs.status import Best, Commit, Ended, Owned, Status
from dist_diffusion.storage import publish

RECIPE = """
task: classifier
train: {steps: 1000, global_batch: 24}
checkpoint: {every: 100}
"""
STATUS = Status(
    run="runs/a",
    task="diffusion",
    step=250,
    steps=1000,
    images=6000,
    loss=0.25,
    loss_mean=0.5,
    images_per_s=48.0,
    skipped_steps=1,
    replaced_samples=2,
    eta_s=375.0,
    last_commit=Commit(200, "runs/a/checkpoints/step-200", True, 42_900_000, 83.0),
    commits=[100, 200],
    best=Best(100, "loss", 0.0123456),
    world_size=8,
    device="cuda:0",
    launch_id="12.1",
    lease=Owned("node1", 77, "12", None, 3.0),
    verdict=Ended(75, "please requeue", "peer lost", 3, 240, "node2", "2026-01-01", "logs/rank-3.log", "12.0", True),
    mirror="s3://bucket/a",
    disk_used_bytes=85_800_000,
    disk_free_bytes=4_200_000_000_000,
)
WORDS = """\
run          runs/a, task diffusion
step         250 of 1000 (25.0%), 6000 images
last commit  step 200, 1m 23s ago, 42.9 MB, marker verifies
commits      100, 200
best         step 100: loss 0.01235
loss         0.2500, mean since the row before 0.5000
speed        48.0 img/s, 6m 15s left
left out     1 steps skipped, 2 samples replaced
ranks        8 on cuda:0
running      probably: process 77 on node1, job 12 holds the lease; its counter last moved 3s ago, by that file's time
verdict      75, please requeue (of an earlier launch): peer lost (rank 3 on node2 at step 240, \
2026-01-01, launch 12.0)
mirror       s3://bucket/a
disk         85.8 MB, 4.2 TB free there"""


def replaced(**values: object) -> str:
    return in_words(replace(STATUS, **values))  # type: ignore[arg-type]


def test_all_of_it_in_words() -> None:
    assert in_words(STATUS) == WORDS


def test_what_is_not_known_is_left_out_or_said() -> None:
    absent = (
        "loss",
        "loss_mean",
        "images_per_s",
        "eta_s",
        "last_commit",
        "best",
        "world_size",
        "lease",
        "verdict",
        "mirror",
    )
    words = replaced(**dict.fromkeys(absent), commits=[], skipped_steps=None, replaced_samples=None)
    assert [line.split("  ")[0] for line in words.splitlines()] == [
        "run",
        "step",
        "last commit",
        "running",
        "verdict",
        "disk",
    ]
    assert "none yet: a kill now loses everything" in words and "running      no\nverdict      none\n" in words
    assert STATUS.verdict is not None
    done = replace(STATUS.verdict, code=0, meaning="done", reason="done", earlier_launch=False)
    assert "verdict      0, done (rank 3 on" in replaced(verdict=done)
    assert "DAMAGED marker: runs/a/c" in replaced(last_commit=Commit(200, "runs/a/c", False, None, 1.0))


@pytest.mark.parametrize(
    ("lease", "running", "verdict"),
    [
        (Owned("h", 7, "", True, 3.0), "yes: process 7 on h", "none"),
        (
            Owned("h", 7, "", False, 3.0),
            "no: process 7 on h held the lease and is gone",
            "none: all its processes were killed",
        ),
        (
            Owned("h", 7, "", None, 90.0),
            "probably not: process 7 on h holds the lease",
            "none: all its processes were killed",
        ),
    ],
)
def test_who_is_running(lease: Owned, running: str, verdict: str) -> None:
    lines = replaced(lease=lease, verdict=None).splitlines()
    assert next(line for line in lines if line.startswith("running ")).split(maxsplit=1)[1].startswith(running)
    assert next(line for line in lines if line.startswith("verdict ")).split(maxsplit=1)[1] == verdict


def test_of_a_mirror_nobody_knows_whether_it_is_running() -> None:
    assert "running      a mirror does not tell\n" in replaced(run="s3://bucket/a", lease=None, verdict=None)


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dist_diffusion", *arguments]
    env = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_and_its_json(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(RECIPE)
    publish.write_json(str(tmp_path / "environment.json"), {"world_size": 2, "device": "cpu", "launch_id": "local-1"})
    owner = asdict(Owner.of_this_process({}))
    publish.write_json(str(tmp_path / "lease.json"), {"owner": owner, "token": "t", "counter": 1})
    (tmp_path / "verdict.json").write_text("of the training before")
    told = str(tmp_path / "verdict.json")
    done = run("status", str(tmp_path), DIST_DIFFUSION_VERDICT=told)
    assert done.returncode == 0 and done.stderr == ""
    assert f"run          {tmp_path}, task classifier\n" in done.stdout and f"yes: process {os.getpid()}" in done.stdout
    found = json.loads(run("status", "--json", str(tmp_path)).stdout)
    assert list(found) == [field.name for field in fields(Status)]
    assert found["lease"]["alive"] is True and found["steps"] == 1000 and found["last_commit"] is None
    refused = run("status", str(tmp_path / "absent"), DIST_DIFFUSION_VERDICT=told)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"dist-diffusion: error: {tmp_path}/absent: no such run directory\n"
    assert (tmp_path / "verdict.json").read_text() == "of the training before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", ".", "key=value"), "status takes a run and nothing else, not key=value"),
        (("export", ".", "--json"), "unknown option --json"),
        (("train", "configs/demo/diffusion.yaml", "--json"), "unknown option --json"),
        (("status",), "the following arguments are required: RUN"),
    ],
)
def test_what_it_does_not_take(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.endswith(f"{message}\n")


def test_it_never_imports_torch() -> None:
    script = "import sys, dist_diffusion.cli.status; assert not {'torch', 'deepspeed', 'blobfile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)
