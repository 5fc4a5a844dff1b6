"""Mirroring and restoring on object stores that speak the protocols, with what networks do to them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.proxy import Fault
from faults.servers import ROOT, Service

from dist_diffusion.errors import CheckpointError, ConfigError, StorageError
from dist_diffusion.runs.lease import Owner
from dist_diffusion.runs.status import read_status
from dist_diffusion.storage import committed, files, publish, restoring
from dist_diffusion.storage.mirror import Mirror

PARENTS = ("checkpoints", "averages")
SIZE = 9_000_000
"""Of a commit's first file: a multi-part upload."""


def commit(run: Path, step: int) -> str:
    folder = committed.stage(str(run / "checkpoints"), f"step-{step}", committed.new_attempt())
    names = ["rank-00000.safetensors", *(f"part {number}.bin" for number in range(5))]
    for name, size in zip(names, (SIZE, 0, 1, 1000, 1000, 1000), strict=True):
        publish.write_bytes(os.path.join(folder, name), os.urandom(size))
    committed.mark(folder, committed.describe(folder, names), {"step": step})
    return folder


def make_run(run: Path) -> Path:
    for step in (1, 2):
        commit(run, step)
    for path in ("config.yaml", "metrics.jsonl", "logs/rank-0.log", "tensorboard/events.out.1"):
        publish.write_bytes(str(run / path), f"{path}\n".encode())
    return run


def mirror(run: Path, remote: str) -> str | None:
    """One pass; its error."""
    made = Mirror(str(run), remote, PARENTS, ("lease.json",), lambda text: None)
    made.request()
    return made.finish(60)


def content(folder: str) -> dict[str, str]:
    return {path: files.sha256(files.join(folder, path)) for path in files.tree(folder)}


def test_folders_are_listed_with_all_that_lies_below(store: Service) -> None:
    names = [f"a/{number}" for number in range(6)]
    for name in ("top", *names, "a/b/c/deep é", f"a/{files.TEMPORARY_PREFIX}x"):
        store.place(f"run/{name}", b"x" * len(name))
    store.place("run-2/other", b"")
    assert files.tree(f"{store.root}/run") == {name: len(name) for name in ("top", *names, "a/b/c/deep é")}
    assert files.tree(f"{store.root}/run/") == files.tree(f"{store.root}/run")
    assert files.tree(f"{store.root}/absent") == {}
    with pytest.raises(StorageError, match="there is no bucket"):
        files.tree(store.root.replace("/bucket/", "/mistyped/"))


def test_a_run_is_mirrored_and_restored_over_a_bad_network(store: Service, tmp_path: Path) -> None:
    run, remote = make_run(tmp_path / "run"), f"{store.root}/run"
    store.proxy.inject(
        Fault("status", method="PUT", status=503, first=2),
        Fault("reset", method="PUT", first=4),
        Fault("lose", method="PUT", first=7),
    )
    assert mirror(run, remote) is None
    assert [fault.fired for fault in store.proxy.faults] == [1, 1, 1]
    assert content(remote) == content(str(run))
    # gs:// asks for an object's size first, by a request of the same method.
    reading = 2 if store.scheme == "gs" else 1
    store.proxy.inject(
        Fault("status", path=r"part 1\.bin", status=503),
        Fault("reset", path="rank-00000", at=2_000_000, first=reading),
        Fault("corrupt", path=r"part 4\.bin", at=500, first=reading),
    )
    again = tmp_path / "again"
    assert restoring.restore(str(again), remote, PARENTS, print)
    assert [fault.fired for fault in store.proxy.faults] == [1, 1, 1]
    store.proxy.inject()
    assert content(str(again)) == content(remote)
    for found in committed.scan(str(again / "checkpoints")):
        committed.verify(found)
    restoring.check(str(again), remote, PARENTS)


def test_what_is_pruned_is_removed_there_and_a_newer_commit_is_refused(store: Service, tmp_path: Path) -> None:
    run, remote = make_run(tmp_path / "run"), f"{store.root}/run"
    shutil.copytree(run, tmp_path / "copy")
    commit(run, 3)
    assert mirror(run, remote) is None
    committed.prune(str(run / "checkpoints"), ["step-3"])
    assert mirror(run, remote) is None
    assert [found.name for found in committed.scan(f"{remote}/checkpoints")] == ["step-3"]
    assert content(remote) == content(str(run))
    with pytest.raises(CheckpointError, match=f"{remote} holds step-3"):
        restoring.check(str(tmp_path / "copy"), remote, PARENTS)


def test_a_service_that_refuses_is_told_and_leaves_no_marker(store: Service, tmp_path: Path) -> None:
    run, remote = make_run(tmp_path / "run"), f"{store.root}/run"
    store.proxy.inject(Fault("status", method="PUT", status=403, first=4, times=None))
    error = mirror(run, remote)
    assert error and "the service refuses access (403" in error
    store.proxy.inject()
    assert committed.scan(f"{remote}/checkpoints") == []
    assert mirror(run, remote) is None and content(remote) == content(str(run))


def test_the_status_of_a_mirror(store: Service, tmp_path: Path) -> None:
    run, remote = make_run(tmp_path / "run"), f"{store.root}/run"
    publish.write_bytes(
        str(run / "config.yaml"), b"{task: diffusion, train: {steps: 9, global_batch: 2}, checkpoint: {every: 1}}"
    )
    publish.write_bytes(str(run / "metrics.jsonl"), b'{"step": 3, "loss": 0.5}\n{"st')
    assert mirror(run, remote) is None
    found = read_status(remote, Owner.of_this_process({}), time.time())
    assert (found.task, found.step, found.loss, found.commits) == ("diffusion", 3, 0.5, [1, 2])
    assert found.last_commit and found.last_commit.marker_verifies and found.last_commit.bytes == SIZE + 3001
    assert (found.lease, found.last_commit.age_s, found.disk_free_bytes) == (None, None, None)
    assert found.disk_used_bytes > 2 * SIZE
    with pytest.raises(ConfigError, match="absent: no such run directory"):
        read_status(f"{store.root}/absent", Owner.of_this_process({}), time.time())


MIRRORING = """
import sys
from dist_diffusion.storage.mirror import Mirror
mirror = Mirror(sys.argv[1], sys.argv[2], ("checkpoints", "averages"), (), print)
mirror.request()
print(mirror.finish(None))
"""


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_killed_in_the_middle_of_an_upload(reach: Callable[[str], Service], scheme: str, tmp_path: Path) -> None:
    store = reach(scheme)
    run, remote = make_run(tmp_path / "run"), f"{store.root}/run"
    store.proxy.inject(Fault("stall", method="PUT", path="step-1.*part 3", seconds=30, times=None))
    process = subprocess.Popen(
        [sys.executable, "-c", MIRRORING, str(run), remote], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    end = time.monotonic() + 20
    while not store.proxy.faults[0].fired and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.proxy.faults[0].fired
    store.proxy.inject()
    # The newest had come first; of the other no marker is there.
    assert [found.name for found in committed.scan(f"{remote}/checkpoints")] == ["step-2"]
    assert len(files.list_names(f"{remote}/checkpoints")) == 2
    assert mirror(run, remote) is None and content(remote) == content(str(run))
