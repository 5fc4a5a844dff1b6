"""What the tests of real launches share: a launcher with a time limit, and readers of what runs leave."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from dist_diffusion.storage import committed

ROOT = Path(__file__).parents[1]
COMMAND = ("-m", "dist_diffusion")


class Launcher:
    """Starts `dist-diffusion` commands as a user would, or another Python program; every one under a time limit."""

    def command(self, ranks: int, *arguments: str, program: Sequence[str] = COMMAND) -> list[str]:
        alone = [sys.executable, *program, *arguments]
        return alone if ranks == 1 else [str(ROOT / "launch/mpirun.sh"), "-np", str(ranks), *alone]

    def start(
        self, ranks: int, *arguments: str, program: Sequence[str] = COMMAND, limit_s: float = 120
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["timeout", "-k", "5", str(limit_s), *self.command(ranks, *arguments, program=program)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        ranks: int,
        *arguments: str,
        code: int = 0,
        program: Sequence[str] = COMMAND,
        limit_s: float = 120,
    ) -> tuple[str, str]:
        process = self.start(ranks, *arguments, program=program, limit_s=limit_s)
        out, err = process.communicate()
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err

    def refused(self, ranks: int, arguments: Sequence[str], *parts: str) -> None:
        """Exit code 2 and one message with these parts in it, within seconds, before any step."""
        start = time.monotonic()
        out, err = self.run(ranks, *arguments, code=2)
        messages = [line for line in err.splitlines() if line.startswith("dist-diffusion: ")]
        assert len(messages) == 1, err
        for part in parts:
            assert part in messages[0]
        assert "Traceback" not in err
        assert "step 1/" not in out
        assert time.monotonic() - start < 60


def write_class_tree(folder: Path, num_images: int, size: int) -> Path:
    """Classes a and b of PNGs of noise, in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(num_images, size, size, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[i % 2] / f"{i:04d}.png")
    return folder


def make_shards(source: Path, out: Path, *arguments: str) -> None:
    """Runs tools/make_shards.py."""
    command = [sys.executable, "tools/make_shards.py", str(source), str(out), *arguments]
    # What Python knows of the environment: MPI, once started in this process, has put its own into the real one.
    subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=True, timeout=60)


def train_arguments(workplace: Path, name: str, recipe: str = "diffusion") -> list[str]:
    where = [f"run_dir={workplace / name}", f"data.shards={workplace / 'shards'}"]
    return ["train", str(workplace / f"{recipe}.yaml"), *where]


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def column(found: list[dict], key: str) -> list:
    return [row[key] for row in found]


def largest_relative(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def wait_until(is_so: Callable[[], bool], what: str, limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)


def wait_for_step(run_dir: Path, step: int) -> None:
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= step, f"step {step} of {run_dir}")


def wait_for_commit(run_dir: Path, step: int) -> None:
    wait_until(lambda: max(committed_steps(run_dir), default=-1) >= step, f"a commit of step {step} in {run_dir}")


def committed_steps(run_dir: Path) -> list[int]:
    return [found.marker["step"] for found in committed.scan(str(run_dir / "checkpoints"))]


def owner_of(run_dir: Path) -> int:
    """The process that holds the lease: rank 0."""
    return json.loads((run_dir / "lease.json").read_text())["owner"]["pid"]


def descendants(pid: int) -> list[int]:
    """The process ids below one, those of mpirun's ranks among them."""
    with suppress(FileNotFoundError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [*children, *(below for child in children for below in descendants(child))]
    return []
