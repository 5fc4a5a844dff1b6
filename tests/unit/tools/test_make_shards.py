"""tools/make_shards.py as it is started by people, launchers and schedulers; and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import write_class_tree

from dist_diffusion.data import manifest

ROOT = Path(__file__).parents[3]


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "tools/make_shards.py", *map(str, arguments)]


def _tool(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = _command(*arguments)
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def _start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _command(*arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Who runs the tests in the background has the terminal's signal ignored, also in what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        text=True,
    )


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _array(task: int, count: int) -> dict[str, str]:
    names = {"ID": task, "MIN": 0, "MAX": count - 1, "COUNT": count, "STEP": 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def _children(process: int) -> set[int]:
    return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def _lives(process: int) -> bool:
    """Whether it is there, and not merely waiting for its new parent to notice its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def _kill(process: subprocess.Popen[str], out: Path, finished: int) -> None:
    """Once so many shards are finished; its workers end too."""
    _wait(lambda: len(list(out.glob("shard-*.json"))) >= finished, "no shard was finished")
    workers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert len(workers) >= 2
    _wait(lambda: not any(map(_lives, workers)), "workers live on")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 classes of 100 images."""
    return write_class_tree(tmp_path_factory.mktemp("tree"), 200, 24)


@pytest.fixture(scope="module")
def undisturbed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """100 shards, made in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = _tool(tree, out, "--samples-per-shard", "2", "--workers", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "200 of 200 images" in done.stdout
    assert done.stdout.endswith(f"200 images in 100 shards, 0 files left out: {out}\n")
    return _content(out)


def test_killed_again_and_again_it_makes_the_same_bytes(
    tree: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = (tree, out, "--samples-per-shard", "2", "--workers", "2")
    for finished in (1, 10, 30):
        _kill(_start(*arguments), out, finished)
        assert not (out / "manifest.json").exists()
        kept = {path: path.with_suffix(".tar").stat().st_mtime_ns for path in out.glob("shard-*.json")}
        assert len(kept) >= finished
    done = _tool(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert _content(out) == undisturbed
    assert all(path.with_suffix(".tar").stat().st_mtime_ns == made for path, made in kept.items())
    again = _tool(*arguments)
    assert again.stdout == f"{out} already holds this set: 200 images in 100 shards\n"


def test_an_arrays_tasks_at_once_make_one_set(tree: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    arguments = (tree, tmp_path / "out", "--samples-per-shard", "2", "--workers", "1")
    tasks = [_start(*arguments, **_array(task, 3)) for task in range(3)]
    for task in tasks:
        _, errors = task.communicate(timeout=60)
        assert (task.returncode, errors) == (0, "")
    assert _content(tmp_path / "out") == undisturbed


def test_a_task_that_ends_before_others_says_so(tree: Path, tmp_path: Path) -> None:
    done = _tool(tree, tmp_path / "out", "--samples-per-shard", "50", "--workers", "1", **_array(1, 3))
    assert (done.returncode, done.stderr) == (0, "")
    assert "share 2 of 3 is done; 3 of 4 shards are not finished yet" in done.stdout


def test_ranks_of_a_launch_share_the_work(tree: Path, tmp_path: Path) -> None:
    said = []
    for rank in (0, 1):
        names = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}
        environment = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}
        done = _tool(tree, tmp_path / "out", "--samples-per-shard", "60", **environment)
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout.splitlines())
    assert ["images/s" in line for line in said[0]] == [True, False]
    assert said[0][1].startswith("rank 0: share 1 of 2 is done; 2 of 4 shards are not finished yet")
    assert said[1] == [f"rank 1: 200 images in 4 shards, 0 files left out: {tmp_path / 'out'}"]
    assert manifest.load(str(tmp_path / "out")).num_samples == 200


def test_all_its_settings(tree: Path, tmp_path: Path) -> None:
    labels = {f"{'ab'[i % 2]}/{i:04d}.png": ("odd" if i % 2 else "even") for i in range(150)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "names.txt").write_text("odd\nneither\neven\n")
    arguments = ["--samples-per-shard", "50", "--seed", "3", "--workers", "2", "--decode", "--resize", "8"]
    arguments += ["--mode", "bicubic", "--jpeg-quality", "90", "--labels", str(tmp_path / "labels.json")]
    done = _tool(tree, tmp_path / "out", *arguments, "--classes", tmp_path / "names.txt")
    assert (done.returncode, done.stderr) == (0, "")
    made = manifest.load(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == made.to_json()
    assert (made.classes, made.class_counts) == (("odd", "neither", "even"), (75, 0, 75))
    assert made.statistics["formats"] == {"JPEG": 150}
    assert len(made.skipped) == 50
    assert made.source["resized"] == {"size": 8, "mode": "bicubic", "output": "jpeg, quality 90"}
    assert "class neither has no images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "source folder SOURCE does not exist"),
        (["--mode", "crop"], "--mode and --jpeg-quality say how images are resized: give --resize N too"),
        (["--workers", "0"], "--workers=0 must be at least 1"),
        (["--classes", "absent.txt"], "cannot read --classes absent.txt: cannot read absent.txt: No such file"),
        (["--labels", "absent.csv"], "cannot read --labels absent.csv: cannot read absent.csv: No such file"),
    ],
)
def test_it_ends_with_one_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    source = str(tmp_path / "absent")
    done = _tool(source, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message.replace('SOURCE', source)}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["", "shards", "a/shards"])
def test_out_is_not_inside_of_source(tree: Path, out: str) -> None:
    done = _tool(tree, tree / out)
    assert done.returncode == 2 and "lies inside SOURCE" in done.stderr
    assert not (tree / "shards").exists()


def test_interrupted_it_says_how_to_go_on(tree: Path, tmp_path: Path) -> None:
    process = _start(tree, tmp_path / "out", "--samples-per-shard", "1", "--workers", "2")
    _wait(lambda: (tmp_path / "out" / "UNFINISHED").exists(), "nothing was begun")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (75, "error: interrupted: run the same command again to go on\n")
