import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import write_class_tree

from dist_diffusion.data import manifest, shards, sources

ROOT = Path(__file__).parents[3]


def _tool(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/verify_shards.py", *map(str, arguments)]
    # What Python knows of the environment: MPI, once started in this process, has put its own into the real one.
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=60)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """2 classes of 10 images, in shards of 8."""
    tree = write_class_tree(tmp_path / "tree", 20, 16)
    shards.make(sources.open_source(str(tree)), str(tmp_path / "set"), 8, seed=0, say=lambda _: None)
    return tmp_path / "set"


def test_a_sound_set_is_said_to_be(made: Path) -> None:
    done = _tool(made, "--decode", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == (
        f"{made} is sound: 20 images in 3 shards, 2 classes, all decoded; 0 files were left out of it"
    )


def test_each_problem_is_a_line_and_the_sum_one(made: Path) -> None:
    (made / "shard-000000.tar").unlink()
    path = made / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-10240])
    done = _tool(made)
    assert done.returncode == 2
    first, second, last = done.stderr.splitlines()
    assert first.startswith(f"problem: shard {made}/shard-000000.tar is missing")
    assert second.startswith(f"problem: shard {path} is cut short at byte ")
    assert last == f"error: {made}: 2 problems found"


def test_it_describes_shards_of_others(made: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    (made / "manifest.json").rename(tmp_path / "manifest.json")
    (made / "index.npy").unlink()
    assert _tool(made).stderr.startswith(f"error: shard folder {made} holds no manifest.json")
    done = _tool(made, "--make-manifest", "--classes", tmp_path / "names.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert manifest.load(str(made)).class_counts == (10, 10)
    assert _tool(made).returncode == 0
    done = _tool(made, "--make-manifest")
    assert done.stderr.startswith(f"error: {made} holds a manifest.json already: verify it without --make-manifest")
    done = _tool(made, "--labels", "prefix")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --classes and --labels are for --make-manifest: give that too\n",
    )
